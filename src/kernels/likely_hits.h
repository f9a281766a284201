// How many experts random choices of `tokens` tokens hit, in the mean: E (1 - (1 - k / E)^T).
#pragma once

#include <cmath>

namespace nibble::kernels {

inline double LikelyHits(double experts, double top_k, double tokens) {
  return experts * (1 - std::pow(1 - top_k / experts, tokens));
}

}  // namespace nibble::kernels
