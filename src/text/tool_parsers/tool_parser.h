// What a parser of tool calls is to the answer parser: content goes in, content and calls come out.
// A new format is one file here and one row in MakeToolParser. Thread-safety: one stream each.
#pragma once

#include <memory>
#include <string_view>

#include "text/answer_writer.h"

namespace nibble::text {

class ToolParser {
 public:
  virtual ~ToolParser() = default;
  virtual void Push(std::string_view text, AnswerWriter& out) = 0;
  virtual void Finish(AnswerWriter& out) = 0;
  // What opens a call; it ends the reasoning of models that forget to. Empty: nothing does.
  virtual std::string_view opening_tag() const = 0;
};

// Formats: "hermes" and "none".
std::unique_ptr<ToolParser> MakeHermesParser(bool whole_tool_calls);
std::unique_ptr<ToolParser> MakeNoToolParser();

}  // namespace nibble::text
