// Hand-written matchers for the split patterns of published tokenizers.
//
// Each finds what the regular expression of the same name finds, in one pass and without
// backtracking over more than the current run, so a hostile text costs linear time. Unknown
// patterns go to regex.h. The expressions themselves are in split_patterns.cc; the file's own
// string decides which matcher runs.
#pragma once

#include <string_view>

namespace nibble::text {

struct Match {
  const char* begin;
  const char* end;
};

// The leftmost match in [from, end), valid UTF-8 that starts at a code point. False if there is
// none. `end` is the end of the text: nothing behind it is looked at.
using FindMatch = bool (*)(const char* from, const char* end, Match* match);

// The matcher for exactly this expression; nullptr if it is not a known one.
FindMatch FindKnownPattern(std::string_view expression);

// The expression that the ByteLevel pre-tokenizer has built in.
extern const std::string_view kGpt2Pattern;
// The expression in Moonshot's tokenization_kimi.py: runs of Han, then words as in o200k.
extern const std::string_view kKimiPattern;

}  // namespace nibble::text
