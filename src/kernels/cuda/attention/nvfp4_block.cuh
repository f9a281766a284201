// A block of 16 numbers of an NVFP4 cache to BF16, exactly.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/convert.cuh"
#include "numerics/e4m3.h"

namespace nibble::kernels::cuda {

// Code (in the low bits) times 2^-126 times 2^63: its magnitude bits are an exponent and a bit of
// significand, as FP32 has them from bit 22 on.
__device__ __forceinline__ float SmallE2M1(uint32_t code) {
  return __uint_as_float((code & 8) << 28 | (code & 7) << 22) * 0x1p63f;
}

// codes: 16, the first in the lowest nibble.
__device__ __forceinline__ void DecodeNvfp4Block(uint2 codes, uint8_t scale, uint4 (&out)[2]) {
  const float factor = E4M3ToFloat(scale) * 0x1p63f;
  const uint32_t words[2] = {codes.x, codes.y};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = words[half] >> (8 * i);
      pairs[i] = ptx::PackBf16(SmallE2M1(pair) * factor, SmallE2M1(pair >> 4) * factor);
    }
    out[half] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

}  // namespace nibble::kernels::cuda
