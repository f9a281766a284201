// What the reference's recurrent ops have in common: a sequence's state and the short convolution
// in front of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/ops.h"
#include "kernels/ref/scalar_functions.h"
#include "numerics/bf16.h"

namespace nibble::kernels::ref {

// Sequence b's `count` values of a state; zeros if it has tokens in this step and starts with them.
template <typename T>
T* StateOf(const StateView& state, const StateSequences& sequences, int64_t b, int64_t count) {
  auto* values = reinterpret_cast<T*>(state.base + sequences.slots[b] * state.stride);
  const bool has_tokens = sequences.q_start[b + 1] > sequences.q_start[b];
  if (has_tokens && sequences.starts(b)) std::fill_n(values, count, T{});
  return values;
}

// silu of a depthwise causal convolution at one token, (C). weight (C, width); bias (C) or null;
// window (width - 1, C): the inputs before this one, moved on by one.
inline std::vector<double> ConvolveToken(const float* weight, const float* bias, int32_t width,
                                         int64_t channels, const uint16_t* input,
                                         uint16_t* window) {
  std::vector<double> mixed(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const float* taps = weight + c * width;
    double sum = bias != nullptr ? bias[c] : 0.0;
    for (int32_t j = 0; j < width - 1; ++j)
      sum += taps[j] * double{Bf16ToFloat(window[j * channels + c])};
    sum += taps[width - 1] * double{Bf16ToFloat(input[c])};
    mixed[c] = RoundToBf16(static_cast<float>(Silu(sum)));
  }
  std::copy(window + channels, window + (width - 1) * channels, window);
  std::copy_n(input, channels, window + (width - 2) * channels);
  return mixed;
}

}  // namespace nibble::kernels::ref
