// Unicode normalization to NFC and NFKC, equal to that of `tokenizers` (an older Unicode version
// than utf8proc's: what only utf8proc knows is left alone).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::text {

enum class NormalizationForm { kNfc, kNfkc };

// A stretch [begin, end) of the text whose normal form differs or may differ from it, and that
// form.
struct NormalizedStretch {
  size_t begin;
  size_t end;
  std::string replacement;
};

// The stretches in order; nearly all text has none. The text must be valid UTF-8.
std::vector<NormalizedStretch> FindUnnormalized(std::string_view text, NormalizationForm form);

}  // namespace nibble::text
