// What cuts an answer into reasoning and content, in front of the parser of tool calls.
// Thread-safety: one stream each.
#pragma once

#include <string_view>

#include "text/answer_writer.h"
#include "text/tool_parsers/tool_parser.h"

namespace nibble::text {

class AnswerSplitter {
 public:
  virtual ~AnswerSplitter() = default;
  // Reasoning goes to `out`, content to `content`, which writes to `out` in turn.
  virtual void Push(std::string_view text, ToolParser& content, AnswerWriter& out) = 0;
  virtual void Finish(ToolParser& content, AnswerWriter& out) = 0;
};

}  // namespace nibble::text
