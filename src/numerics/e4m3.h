// E4M3 ("e4m3fn"): sign, four exponent bits (bias 7), three mantissa bits. Max 448 (0x7E), no
// infinity, NaN 0x7F/0xFF. UE4M3, the block scale of NVFP4, is the same code with sign bit 0.
// Rounding is to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble {

inline constexpr float kE4M3Max = 448.0f;

NIBBLE_HD constexpr bool E4M3IsNan(uint8_t code) { return (code & 0x7Fu) == 0x7Fu; }

NIBBLE_HD constexpr float E4M3ToFloat(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t exponent = (code >> 3) & 0xFu;
  const uint32_t mantissa = code & 7u;
  if (E4M3IsNan(code)) return std::bit_cast<float>(sign | 0x7FC00000u);
  if (exponent == 0) {  // m * 2^-9
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
}

// Magnitude bits of a finite |value| <= 464, which rounds to at most 0x7E.
NIBBLE_HD constexpr uint8_t E4M3RoundMagnitude(uint32_t magnitude) {
  if (magnitude < 0x3C800000u) {  // below 2^-6: subnormal, last bit worth 2^-9
    // Adding 2^14 aligns weight 2^-9 with the sum's last mantissa bit: RNE by the adder.
    const float aligned = std::bit_cast<float>(magnitude) + 0x1p14f;
    return static_cast<uint8_t>(std::bit_cast<uint32_t>(aligned) -
                                std::bit_cast<uint32_t>(0x1p14f));
  }
  const uint32_t rounded = magnitude + 0x7FFFFu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>((rounded - 0x3C000000u) >> 20);
}

// Saturates at ±448, as CUDA's conversions do; NaN gives NaN (0x7F, sign kept as 0).
NIBBLE_HD constexpr uint8_t E4M3FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7F;
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  if (magnitude >= 0x43E80000u) return sign | 0x7E;  // 464 and above: 464 itself ties to 448
  return sign | E4M3RoundMagnitude(magnitude);
}

// PyTorch's rule: beyond 464 the result is NaN instead of 448.
NIBBLE_HD constexpr uint8_t E4M3FromFloatNoSaturate(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  if ((bits & 0x7FFFFFFFu) > 0x43E80000u) return sign | 0x7F;
  return sign | E4M3RoundMagnitude(bits & 0x7FFFFFFFu);
}

}  // namespace nibble
