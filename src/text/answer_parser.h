// Splits a model's answer, as it streams in, into content, reasoning and tool calls.
//
// Pieces of decoded text go in, events come out. The joined texts per kind and tool call do not
// depend on where the pieces were cut: a tag that may still become one is held back. Formatting
// around the tags (newlines next to <think> and </think>, white space next to a tool call) belongs
// to the tags and is dropped.
//
// Tool calls are reported in one of two ways. Streaming: a call starts as soon as its name is known
// and its arguments begin, and their text follows as it arrives, exactly as the model wrote it;
// should that text then turn out not to be JSON, the rest of it still arrives as arguments, since
// nothing that was sent can be taken back. Whole calls (`whole_tool_calls`): a call is reported
// only when its JSON is complete and valid, otherwise its text is content. For valid calls both
// give the same name and the same joined arguments.
//
// Thread-safety: one parser belongs to one stream. Parsers are made by name, as vLLM names them;
// ChooseParsers picks names from the chat template.
#pragma once

#include <boost/json/fwd.hpp>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "text/tokenizer.h"

namespace nibble::text {

struct AnswerEvent {
  enum class Kind {
    kContent,            // text: a piece of the answer
    kReasoning,          // text: a piece of the reasoning
    kToolCallStart,      // text: the function's name; index: 0, 1, ... in order of appearance; id:
                         // what the model calls the call, empty where its format has no such name
    kToolCallArguments,  // text: the next piece of that call's arguments (JSON text)
  };
  Kind kind = Kind::kContent;
  std::string text;
  int index = 0;
  std::string id = {};

  bool operator==(const AnswerEvent&) const = default;
};

// What the first bytes of the answer are.
enum class AnswerStart {
  kContent,
  kReasoning,  // an opening tag may follow or the template has already written it
  kDetect,     // reasoning if the answer begins with the opening tag, else content; a header
};

struct ParserNames {
  std::string tools = "none";      // "hermes", "qwen3_coder", ...: tool_parsers/tool_parser.cc
  std::string reasoning = "none";  // "qwen3", "deepseek_r1", ...: answer_parser.cc

  bool operator==(const ParserNames&) const = default;
};

struct AnswerParserOptions {
  ParserNames names;
  AnswerStart start = AnswerStart::kContent;  // has no meaning when names.reasoning is "none"
  bool whole_tool_calls = false;              // see above; false is for streams
  // Of the request, in OpenAI's form; some formats need the types. Read by Make only.
  const boost::json::array* tools = nullptr;
};

class AnswerParser {
 public:
  // kInvalidArgument for an unknown name; the message lists the names that exist.
  static Result<AnswerParser> Make(const AnswerParserOptions& options);
  AnswerParser(AnswerParser&&) noexcept;
  AnswerParser& operator=(AnswerParser&&) noexcept;
  ~AnswerParser();

  // Consecutive events of one kind are merged; no event but kToolCallStart has an empty text.
  std::vector<AnswerEvent> Push(std::string_view text);
  // What was held back. The parser takes no more text afterwards.
  std::vector<AnswerEvent> Finish();

  struct Impl;

 private:
  explicit AnswerParser(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// From the source of the chat template, by the tags that it writes calls and reasoning with.
ParserNames ChooseParsers(std::string_view template_source);

// The tags of these parsers. Where the vocabulary has one of them as a special token, special
// tokens must not be skipped when the answer is decoded.
std::vector<std::string_view> ParserTags(const ParserNames& names);

// Tokens that end an answer in harmony: <|return|> and <|call|>, which a checkpoint's configuration
// may leave out. None for vocabularies without them.
std::vector<int32_t> FormatStopIds(const Tokenizer& tokenizer);

// How an answer to this rendered prompt starts. The prompt's end decides where it says so (it ends
// in an opened <think>, or in a closed one, or inside a message of harmony). Otherwise thinking is
// off when the request switched it off (enable_thinking false); deepseek_r1 and nemotron_v3 start
// in reasoning; so does qwen3 where the template knows the switch
// (ChatTemplate::Mentions("enable_thinking")); deepseek_v3 starts in content; others are detected.
AnswerStart ChooseStart(std::string_view reasoning_parser, std::string_view prompt,
                        std::optional<bool> enable_thinking, bool template_has_switch);

}  // namespace nibble::text
