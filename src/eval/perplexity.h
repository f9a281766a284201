// Perplexity of a model over a text: exp of the mean negative log-probability of each token given
// the ones before it, inside windows of `window` tokens that do not overlap. The first token of a
// window is not scored.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "engine/engine.h"

namespace nibble::eval {

struct Perplexity {
  double value = 0;
  int64_t scored_tokens = 0;
};

// kInvalidArgument when the text has fewer than two tokens.
Result<Perplexity> MeasurePerplexity(engine::Engine& engine, std::string_view text,
                                     int64_t window = 512);

}  // namespace nibble::eval
