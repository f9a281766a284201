// The regular expressions of tokenizer files rewritten for PCRE2: tokenizer.json is written for
// Oniguruma, tekken.json and tiktoken's patterns for Rust's fancy-regex.
//
// The dialects differ where it is not seen: sets of characters (Unicode versions, \s, \w), `{1,3}+`
// (possessive in PCRE2 and Rust, a repeated group in Oniguruma), `&&` in classes (literal in
// PCRE2),
// `^` and `$` (line anchors in Oniguruma, ends of the text in Rust). Each character class is
// computed here from our own tables and written out as ranges, so PCRE2's Unicode version does not
// matter. A construct that is not known to mean the same in PCRE2 is refused by name.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace nibble::text {

enum class RegexSyntax { kOniguruma, kRust };

Result<std::string> TranslatePattern(std::string_view pattern, RegexSyntax syntax);

}  // namespace nibble::text
