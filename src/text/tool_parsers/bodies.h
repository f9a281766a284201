// What the formats of tool calls have behind their opening tags. One file implements each.
//
// Names and headers are short: what is longer than kMaxHeaderBytes is no call.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "text/tool_parsers/json_scanner.h"
#include "text/tool_parsers/tagged_parser.h"
#include "text/tool_parsers/tool_schemas.h"

namespace nibble::text {

inline constexpr size_t kMaxHeaderBytes = 256;

// A JSON object with name and arguments, a list of them, or several with `separator` between.
std::unique_ptr<CallBody> MakeJsonCallsBody(std::string_view separator = "");

// Where `tag` ends a name or another header at the front of rest: kOn, and `at` is its place; kMore
// if it may still come; else kInvalid.
CallBody::Step FindHeaderEnd(std::string_view rest, std::string_view tag, size_t* at);

// Mistral: a list of JSON calls, or NAME[ARGS]{...} with an optional [CALL_ID]... in front of
// [ARGS].
std::unique_ptr<CallBody> MakeMistralBody();

// Kimi: functions.NAME:INDEX<|tool_call_argument_begin|>{...}; tag 0 opens a section of calls.
std::unique_ptr<CallBody> MakeKimiBody();

// DeepSeek: TYPE<｜tool▁sep｜>NAME and a fenced block of JSON (V3, R1), or NAME<｜tool▁sep｜>{...}
// (V3.1); tag 0 opens a section of calls.
std::unique_ptr<CallBody> MakeDeepSeekBody();

// Qwen3-Coder: <function=NAME><parameter=KEY>value</parameter>...</function>; tag 1 is <function=.
std::unique_ptr<CallBody> MakeQwenCoderBody(ToolSchemas schemas);

// GLM: NAME, then <arg_key>KEY</arg_key><arg_value>value</arg_value> pairs, then </tool_call>.
std::unique_ptr<CallBody> MakeGlmBody(ToolSchemas schemas);

// [name(key=literal, ...), ...]
std::unique_ptr<CallBody> MakePythonicBody();

// JSON for a literal of Python (numbers, strings, True, None, lists, tuples, dicts); nothing for
// other text.
std::optional<std::string> PythonLiteralToJson(std::string_view text);

// Reads the arguments of a call, one JSON object, behind its name; nothing in front of `end_tag`
// stands for {}.
class JsonArguments {
 public:
  CallBody::Step Read(CallText& text, std::string_view end_tag);

 private:
  JsonScanner scanner_;
  bool begun_ = false;
};

}  // namespace nibble::text
