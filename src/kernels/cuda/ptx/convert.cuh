// Conversions of pairs of floats, to nearest even. The pair's first member has the lower address.
#pragma once

#include <cstdint>

#include "numerics/e2m1.h"
#include "numerics/e4m3.h"

namespace nibble::kernels::cuda::ptx {

__device__ __forceinline__ uint32_t PackBf16(float first, float second) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
  return packed;
}
__device__ __forceinline__ float FirstBf16(uint32_t packed) {
  return __uint_as_float(packed << 16);
}
__device__ __forceinline__ float SecondBf16(uint32_t packed) {
  return __uint_as_float(packed & 0xFFFF0000u);
}
__device__ __forceinline__ float RoundBf16(float value) { return FirstBf16(PackBf16(value, 0.0f)); }

// Saturates at ±448; NaN is 0x7F.
__device__ __forceinline__ uint16_t PackE4m3(float first, float second) {
#if __CUDA_ARCH__ >= 890
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(second), "f"(first));
  return packed;
#else
  return static_cast<uint16_t>(E4M3FromFloat(first) | (E4M3FromFloat(second) << 8));
#endif
}

// Eight E2M1 codes, the first in the lowest nibble; NaN is 6. In hardware on SM 10.x and 12.x.
__device__ __forceinline__ uint32_t PackE2M1(const float (&values)[8]) {
#if defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH_FAMILY_SPECIFIC__ >= 1000
  uint32_t packed;
  asm("{\n.reg .b8 pairs<4>;\n"
      "cvt.rn.satfinite.e2m1x2.f32 pairs0, %2, %1;\n"
      "cvt.rn.satfinite.e2m1x2.f32 pairs1, %4, %3;\n"
      "cvt.rn.satfinite.e2m1x2.f32 pairs2, %6, %5;\n"
      "cvt.rn.satfinite.e2m1x2.f32 pairs3, %8, %7;\n"
      "mov.b32 %0, {pairs0, pairs1, pairs2, pairs3};\n}"
      : "=r"(packed)
      : "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]), "f"(values[4]),
        "f"(values[5]), "f"(values[6]), "f"(values[7]));
  return packed;
#else
  uint32_t packed = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) packed |= static_cast<uint32_t>(E2M1FromFloat(values[i])) << (4 * i);
  return packed;
#endif
}

}  // namespace nibble::kernels::cuda::ptx
