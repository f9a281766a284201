// Conversions of pairs of floats, to nearest even. The pair's first member has the lower address.
#pragma once

#include <cstdint>

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

}  // namespace nibble::kernels::cuda::ptx
