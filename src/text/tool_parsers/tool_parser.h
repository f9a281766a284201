// What a parser of tool calls is to the answer parser: content goes in, content and calls come out.
// A new format is a body (bodies.h) and one row of the table in tool_parser.cc. Thread-safety: one
// stream each.
#pragma once

#include <boost/json/fwd.hpp>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

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

// nullptr for an unknown name. `tools` are those of the request, for formats that need their types.
std::unique_ptr<ToolParser> MakeToolParser(std::string_view name, bool whole_tool_calls,
                                           const boost::json::array* tools);
// "deepseek_v3, glm45, ..., none".
std::string ToolParserNames();
// The tags of a format; none for an unknown name.
std::vector<std::string_view> ToolParserTags(std::string_view name);

}  // namespace nibble::text
