// How activations become E4M3 for products with FP8 weights: code = E4M3(x / scale), where one
// scale holds for some columns of a token. It is the checkpoint's, or the largest magnitude / 448,
// which uses the whole range.
#pragma once

#include <cstdint>

#include "numerics/e4m3.h"
#include "numerics/host_device.h"

namespace nibble {

// Columns of a token that share a scale where the weight has one for as many.
inline constexpr int kFp8GroupColumns = 128;

// Below it values count as zeros, nearly: their scale must not vanish.
inline constexpr float kSmallestFp8Amax = 0x1p-100f;

// amax: the largest magnitude. Infinity stays, and makes the product NaN.
NIBBLE_HD constexpr float Fp8ActivationScale(float amax) {
  return (amax > kSmallestFp8Amax ? amax : kSmallestFp8Amax) / kE4M3Max;
}

// What values are multiplied by before they are rounded.
NIBBLE_HD constexpr float Fp8ActivationMultiplier(float scale) { return 1.0f / scale; }

}  // namespace nibble
