// Reads one tool call that is a JSON object, {"name": ..., "arguments": {...}}, as it arrives.
// `parameters` is another name for the arguments; other fields are ignored. Thread-safety: none.
#pragma once

#include <optional>
#include <string>

#include "text/tool_parsers/json_scanner.h"

namespace nibble::text {

class JsonCall {
 public:
  enum class Step { kMore, kDone, kInvalid };

  Step Push(char c);

  const std::optional<std::string>& name() const { return name_; }
  bool arguments_complete() const { return arguments_complete_; }
  // The name and the first character of the arguments are known, and these are no string, whose
  // text is known only at its end.
  bool can_stream() const { return name_ && has_arguments_ && arguments_[0] != '"'; }
  // The arguments so far, as the model wrote them.
  const std::string& arguments() const { return arguments_; }
  // The arguments of a complete call. Some models write them as a string that holds JSON.
  std::string FinalArguments() const;

 private:
  enum class State { kBegin, kFirstKey, kKey, kInKey, kColon, kValue, kAfterValue };
  enum class Field { kName, kArguments, kOther };

  Step PushValue(char c);
  Step EndValue();

  State state_ = State::kBegin;
  Field field_ = Field::kOther;
  JsonScanner scanner_;
  std::string text_;  // the key, or the value of a field that is not `arguments`
  bool value_begun_ = false;
  std::optional<std::string> name_;
  std::string arguments_;
  bool has_arguments_ = false;
  bool arguments_complete_ = false;
};

}  // namespace nibble::text
