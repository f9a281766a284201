// Oniguruma's regular expressions, as they stand in tokenizer.json, rewritten for PCRE2.
//
// The dialects differ where it is not seen: sets of characters (Unicode versions, \s), `{1,3}+`
// (possessive in PCRE2, a repeated group in Oniguruma), `&&` in classes (literal in PCRE2), `^` and
// `$` (line anchors in Oniguruma). Each character class is computed here from our own tables and
// written out as ranges, so PCRE2's Unicode version does not matter. A construct that is not known
// to mean the same in both is refused by name.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace nibble::text {

Result<std::string> TranslateOnigurumaPattern(std::string_view pattern);

}  // namespace nibble::text
