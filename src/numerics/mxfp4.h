// MXFP4 (OCP microscaling): blocks of 32 E2M1 codes along K, one E8M0 scale per block, no tensor
// scale.
//   value = e2m1(code) * 2^(scale - 127)
#pragma once

#include <cstdint>

#include "numerics/e2m1.h"
#include "numerics/e8m0.h"
#include "numerics/host_device.h"
#include "numerics/nvfp4.h"

namespace nibble {

inline constexpr int kMxfp4Block = 32;

NIBBLE_HD constexpr float Mxfp4Dequantize(uint8_t code, uint8_t scale) {
  return E2M1ToFloat(code) * E8M0ToFloat(scale);
}

// OCP's rule: 2^(floor(log2 amax) - 2), so that the largest magnitude lands in [4, 8) and may
// saturate at 6.
NIBBLE_HD constexpr uint8_t Mxfp4BlockScale(float amax) {
  const int power = E8M0FromFloat(amax);
  return static_cast<uint8_t>(power > 2 ? power - 2 : 0);
}

// Writes 16 bytes of codes and returns the block scale. Inputs are finite.
NIBBLE_HD constexpr uint8_t Mxfp4QuantizeBlock(const float* values, uint8_t* codes) {
  const uint8_t scale = Mxfp4BlockScale(MaxMagnitude(values, kMxfp4Block));
  const float step = E8M0ToFloat(scale);
  for (int i = 0; i < kMxfp4Block; i += 2) {
    codes[i / 2] = PackE2M1(E2M1FromFloat(values[i] / step), E2M1FromFloat(values[i + 1] / step));
  }
  return scale;
}

}  // namespace nibble
