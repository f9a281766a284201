// Template source to tokens: data outside the tags, and the words of expressions inside.
//
// White space follows jinja2 with trim_blocks and lstrip_blocks and without keep_trailing_newline:
// a statement or comment that stands alone on a line takes its indentation and its newline with it;
// `-` strips all white space on its side, `+` switches the automatism off; `{{ }}` strips nothing
// unless told. One newline at the end of the source is dropped.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "text/jinja/value.h"

namespace nibble::text::jinja {

struct Token {
  enum class Type {
    kData,
    kVariableBegin,
    kVariableEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Type type = Type::kEnd;
  std::string text;  // data, name, unescaped string, operator
  Value number;      // kInteger, kFloat
  int line = 1;

  bool IsOperator(std::string_view op) const { return type == Type::kOperator && text == op; }
  bool IsName(std::string_view name) const { return type == Type::kName && text == name; }
};

// Errors begin with "line N: ". Always ends with a kEnd token.
Result<std::vector<Token>> Tokenize(std::string_view source);

// For error messages: "'endif'", "end of the template".
std::string Describe(const Token& token);

}  // namespace nibble::text::jinja
