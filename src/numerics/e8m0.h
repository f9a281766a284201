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

}  // namespace nibble
