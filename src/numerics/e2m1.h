// E2M1 (FP4): sign, two exponent bits (bias 1), one mantissa bit. Values ±{0, 0.5, 1, 1.5, 2, 3, 4,
// 6}; no infinity, no NaN. A byte holds two codes, the even element in the low nibble. Rounding is
// to nearest, ties to the even code, saturating at 6; NaN gives +6, as CUDA's cuda_fp4.h does. The
// sign of zero is kept: -0.1 gives code 8.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble {

inline constexpr float kE2M1Max = 6.0f;

// 2 * value as an integer: what integer kernels multiply with.
NIBBLE_HD constexpr int E2M1Doubled(uint8_t code) {
  // Magnitudes 0 1 2 3 4 6 8 12, a nibble each, lowest code first.
  const int magnitude = static_cast<int>((0xC8643210u >> (4 * (code & 7u))) & 0xFu);
  return (code & 8u) != 0 ? -magnitude : magnitude;
}

NIBBLE_HD constexpr float E2M1ToFloat(uint8_t code) {
  const float magnitude = 0.5f * static_cast<float>(E2M1Doubled(code & 7u));
  return (code & 8u) != 0 ? -magnitude : magnitude;  // keeps -0
}

NIBBLE_HD constexpr uint8_t E2M1FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7;
  const uint8_t sign = static_cast<uint8_t>((bits >> 28) & 8u);
  const float x = std::bit_cast<float>(bits & 0x7FFFFFFFu);
  // The borders are midpoints of neighbours; the even code owns its two borders.
  uint8_t code = 0;
  if (x > 5.0f)
    code = 7;
  else if (x >= 3.5f)
    code = 6;
  else if (x > 2.5f)
    code = 5;
  else if (x >= 1.75f)
    code = 4;
  else if (x > 1.25f)
    code = 3;
  else if (x >= 0.75f)
    code = 2;
  else if (x > 0.25f)
    code = 1;
  return sign | code;
}

// Two neighbours along K, the even element in the low nibble.
NIBBLE_HD constexpr uint8_t PackE2M1(uint8_t even, uint8_t odd) {
  return static_cast<uint8_t>((even & 0xFu) | (odd << 4));
}

NIBBLE_HD constexpr uint8_t UnpackE2M1(const uint8_t* codes, int64_t index) {
  return (codes[index >> 1] >> (4 * (index & 1))) & 0xFu;
}

}  // namespace nibble
