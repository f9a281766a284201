// NVFP4: blocks of 16 E2M1 codes along K, one UE4M3 scale per block, one FP32 scale per tensor.
//   value = e2m1(code) * (e4m3(block scale) * tensor scale), each product rounded to FP32
//   (ModelOpt's order).
// Sources: ModelOpt's NVFP4 quantiser for the order of roundings; "max" is its calibration of
// weights.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "numerics/host_device.h"

namespace nibble {

inline constexpr int kNvfp4Block = 16;
inline constexpr float kNvfp4Range =
    kE2M1Max * kE4M3Max;  // 2688: the largest |value| / tensor scale

NIBBLE_HD constexpr float Nvfp4Dequantize(uint8_t code, uint8_t block_scale, float tensor_scale) {
  return E2M1ToFloat(code) * (E4M3ToFloat(block_scale) * tensor_scale);
}

NIBBLE_HD constexpr float MaxMagnitude(const float* values, int count) {
  float largest = 0.0f;
  for (int i = 0; i < count; ++i) {
    const float magnitude = values[i] < 0 ? -values[i] : values[i];
    if (magnitude > largest) largest = magnitude;
  }
  return largest;
}

// Tensor scale of a tensor whose largest magnitude is amax: 1 for an all-zero tensor. amax times
// the FP32 nearest to 1/2688, as ModelOpt computes it on a GPU (a division, its result on a CPU,
// differs in the last bit for some amax).
NIBBLE_HD constexpr float Nvfp4TensorScale(float amax) {
  return amax > 0.0f ? amax * std::bit_cast<float>(0x39C30C31u) : 1.0f;
}

// Block scale for a block whose largest magnitude is amax; 0x38 (1.0) for a zero block.
NIBBLE_HD constexpr uint8_t Nvfp4BlockScale(float amax, float tensor_scale) {
  float scale = amax / (kE2M1Max * tensor_scale);
  if (scale == 0.0f) scale = 1.0f;
  if (scale < 0x1p-9f) scale = 0x1p-9f;
  if (scale > kE4M3Max) scale = kE4M3Max;
  return E4M3FromFloat(scale);
}

// The code of one value under a given scale. Like ModelOpt, -0.0 gives code 0 and a tiny negative
// value code 8.
NIBBLE_HD constexpr uint8_t Nvfp4Code(float value, uint8_t block_scale, float tensor_scale) {
  const uint8_t code = E2M1FromFloat(value / (E4M3ToFloat(block_scale) * tensor_scale));
  return value == 0.0f ? 0 : code;
}

// Writes 8 bytes of codes and returns the block scale.
NIBBLE_HD constexpr uint8_t Nvfp4QuantizeBlockMax(const float* values, float tensor_scale,
                                                  uint8_t* codes) {
  const uint8_t scale = Nvfp4BlockScale(MaxMagnitude(values, kNvfp4Block), tensor_scale);
  for (int i = 0; i < kNvfp4Block; i += 2) {
    codes[i / 2] = PackE2M1(Nvfp4Code(values[i], scale, tensor_scale),
                            Nvfp4Code(values[i + 1], scale, tensor_scale));
  }
  return scale;
}

// Sum of squared errors of a block under a given scale.
NIBBLE_HD constexpr float Nvfp4BlockError(const float* values, uint8_t scale, float tensor_scale) {
  float sum = 0.0f;
  for (int i = 0; i < kNvfp4Block; ++i) {
    const float error =
        values[i] - Nvfp4Dequantize(Nvfp4Code(values[i], scale, tensor_scale), scale, tensor_scale);
    sum += error * error;
  }
  return sum;
}

// The block scale with the least squared error among all 126 finite positive codes; the smallest on
// ties. A zero block keeps 0x38.
NIBBLE_HD constexpr uint8_t Nvfp4BlockScaleMse(const float* values, float tensor_scale) {
  const float amax = MaxMagnitude(values, kNvfp4Block);
  if (amax == 0.0f) return Nvfp4BlockScale(amax, tensor_scale);
  uint8_t best = 0x01;
  float best_error = Nvfp4BlockError(values, best, tensor_scale);
  for (int scale = 0x02; scale <= 0x7E; ++scale) {
    const float error = Nvfp4BlockError(values, static_cast<uint8_t>(scale), tensor_scale);
    if (error < best_error) {
      best_error = error;
      best = static_cast<uint8_t>(scale);
    }
  }
  return best;
}

NIBBLE_HD constexpr uint8_t Nvfp4QuantizeBlockMse(const float* values, float tensor_scale,
                                                  uint8_t* codes) {
  const uint8_t scale = Nvfp4BlockScaleMse(values, tensor_scale);
  for (int i = 0; i < kNvfp4Block; i += 2) {
    codes[i / 2] = PackE2M1(Nvfp4Code(values[i], scale, tensor_scale),
                            Nvfp4Code(values[i + 1], scale, tensor_scale));
  }
  return scale;
}

// ---- Activations (W4A4). The tensor scale is calibrated and stored, `input_scale`; blocks get
// theirs as the value comes by. The rule of the published runtimes, with IEEE divisions instead of
// their approximate reciprocals, so that every device has the same bits: theirs may differ by one
// code where a value lies on a border.

// Of a block whose largest magnitude is amax; `inverse`: 1 / input_scale. 0: the block counts as
// zero.
NIBBLE_HD constexpr uint8_t Nvfp4ActivationScale(float amax, float inverse) {
  constexpr float kSixth = 1.0f / 6.0f;
  return E4M3FromFloat(inverse * (amax * kSixth));
}

// Code of x: E2M1FromFloat(x * multiplier).
NIBBLE_HD constexpr float Nvfp4ActivationMultiplier(uint8_t block_scale, float inverse) {
  return block_scale == 0 ? 0.0f : inverse / E4M3ToFloat(block_scale);
}

}  // namespace nibble
