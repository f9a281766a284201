// Regular expressions of tokenizer.json that have no hand-written matcher: PCRE2 with its JIT.
//
// Thread-safety: a compiled Regex is immutable; match buffers belong to the calling thread. Match
// and depth limits bound each search; a text that exceeds them is an error, never a wrong split.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "text/tokenizer/regex_translate.h"
#include "text/tokenizer/split_patterns.h"

namespace nibble::text {

class Regex {
 public:
  static Result<Regex> Compile(std::string_view expression, RegexSyntax syntax);

  // The leftmost match at or after `from`; look-behind sees the text before it. False if there is
  // none. The text must be valid UTF-8.
  Result<bool> Find(std::string_view text, size_t from, Match* match) const;

 private:
  struct Compiled;
  explicit Regex(std::shared_ptr<const Compiled> compiled) : compiled_(std::move(compiled)) {}
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace nibble::text
