// E8M0: a power of two, 2^(code - 127); 0xFF is NaN. The block scale of the MX formats.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble {

NIBBLE_HD constexpr float E8M0ToFloat(uint8_t code) {
  if (code == 0xFF) return std::bit_cast<float>(0x7FC00000u);
  if (code == 0) return std::bit_cast<float>(0x00400000u);  // 2^-127, subnormal
  return std::bit_cast<float>(static_cast<uint32_t>(code) << 23);
}

// The largest power of two that is not above |value|, within [2^-127, 2^127]; NaN gives 0xFF.
NIBBLE_HD constexpr uint8_t E8M0FromFloat(float value) {
  const uint32_t magnitude = std::bit_cast<uint32_t>(value) & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0xFF;
  return static_cast<uint8_t>(magnitude == 0x7F800000u ? 0xFE : magnitude >> 23);
}

}  // namespace nibble
