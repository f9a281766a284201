// Splits an answer in the harmony format (gpt-oss) into reasoning, content and tool calls.
//
// An answer is a row of messages: `<|channel|>analysis<|message|>...<|end|>`, then, behind
// `<|start|>assistant`, the next. The channel `analysis` is reasoning, `final` and `commentary` are
// content; a message with a recipient (`to=functions.NAME`) is a call, its text the arguments. Text
// without any header is content. Control tokens are never part of what comes out, nor is what a
// header says. Messages of one kind are separated by an empty line. Source: the format's
// description, github.com/openai/harmony docs/format.md. Thread-safety: one stream.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "text/answer_parser.h"
#include "text/answer_splitter.h"

namespace nibble::text {

class HarmonySplitter : public AnswerSplitter {
 public:
  // start: kDetect where the answer begins with a header, else the message that it goes on with.
  // reads_calls: false makes calls content.
  HarmonySplitter(AnswerStart start, bool reads_calls);

  void Push(std::string_view text, ToolParser& content, AnswerWriter& out) override;
  void Finish(ToolParser& content, AnswerWriter& out) override;

  static std::span<const std::string_view> tags();

 private:
  enum class State {
    kStart,   // a header, or text without one
    kHeader,  // up to <|message|>
    kBody,
  };
  enum class Kind { kContent, kReasoning, kCall };

  bool Advance(ToolParser& content, AnswerWriter& out);
  bool AdvanceStart();
  bool AdvanceHeader(ToolParser& content, AnswerWriter& out);
  bool AdvanceBody(ToolParser& content, AnswerWriter& out);
  struct Header;
  void BeginMessage(const Header& header, AnswerWriter& out);
  void EndMessage(AnswerWriter& out);
  void Emit(std::string_view text, ToolParser& content, AnswerWriter& out);

  const bool reads_calls_;
  State state_;
  Kind kind_ = Kind::kContent;
  std::string pending_;
  std::string space_;  // of a call's arguments: may be at their end
  bool message_has_text_ = false;
  bool has_content_ = false;  // in earlier messages
  bool has_reasoning_ = false;
  int calls_ = 0;
};

}  // namespace nibble::text
