// Tokens to syntax tree, with jinja2's grammar and precedence.
//
// Knows the statements that published chat templates use. Inheritance and inclusion need a loader,
// which transformers does not give either: they are refused by name. Nesting is bounded, so neither
// the parser nor the interpreter can overflow the stack.
#pragma once

#include <set>
#include <string>
#include <string_view>

#include "base/error.h"
#include "text/jinja/ast.h"

namespace nibble::text::jinja {

struct SyntaxTree {
  Body body;
  std::set<std::string, std::less<>> names;  // every name that is read
};

// Errors begin with "line N: ".
Result<SyntaxTree> Parse(std::string_view source);

}  // namespace nibble::text::jinja
