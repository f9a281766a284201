// A text of our own for quick perplexity checks: plain prose, a dialogue, a list, code and numbers.
// Too short to rank models, long enough to see that a quantisation went wrong; `--text FILE` takes
// a real corpus.
#pragma once

#include <string_view>

namespace nibble::apps {

extern const std::string_view kSampleText;

}  // namespace nibble::apps
