// BF16: the upper half of an IEEE binary32. Conversions round to nearest, ties to even; NaN stays
// NaN (quiet).
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble {

NIBBLE_HD constexpr float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

NIBBLE_HD constexpr uint16_t Bf16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// value rounded to BF16 and widened again.
NIBBLE_HD constexpr float RoundToBf16(float value) { return Bf16ToFloat(Bf16FromFloat(value)); }

}  // namespace nibble
