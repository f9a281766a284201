// How far a model's logits are from a reference's for the same tokens: whether another backend
// computes the same model, weights made up or not. Thread-safety: the engines'.
#pragma once

#include <cstdint>
#include <span>

#include "base/error.h"
#include "engine/engine.h"

namespace nibble::eval {

struct LogitsDistance {
  int64_t rows = 0;
  double mean = 0;     // over positions of |logits - reference| / |reference|, as vectors
  double largest = 0;  // of these; infinite if a logit is not finite

  // A mistake in an op moves logits by much more; other roundings of BF16 activations and of caches
  // by less.
  static constexpr double kTolerance = 0.05;
  bool matches() const { return rows > 0 && largest <= kTolerance; }
};

// Logits of all tokens but the last: at least two.
Result<LogitsDistance> MeasureLogits(engine::Engine& model, engine::Engine& reference,
                                     std::span<const int32_t> tokens);

}  // namespace nibble::eval
