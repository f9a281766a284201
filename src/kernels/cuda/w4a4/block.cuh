// A block of 16 activations to NVFP4, by the rule of numerics/nvfp4.h, in the order of order.h.
#pragma once

#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/w4a4/order.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels::cuda::w4a4 {

// Block lane % 4 of k-tile u (0..3) of token lane / 4, by a whole warp: into the piece of the slice
// and the group of tokens.
__device__ __forceinline__ void StoreBlock(const float (&values)[kNvfp4Block], float inverse_scale,
                                           int u, int lane, std::byte* piece) {
  const int g = lane / 4, block = lane % 4;
  const uint8_t scale = Nvfp4ActivationScale(MaxMagnitude(values, kNvfp4Block), inverse_scale);
  const float multiplier = Nvfp4ActivationMultiplier(scale, inverse_scale);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float ordered[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) ordered[i] = values[8 * half + NibbleColumn(i)] * multiplier;
    const int to = CodeOffset(u, 4 * g + block / 2 * 2 + half, block % 2);
    *reinterpret_cast<uint32_t*>(piece + to) = ptx::PackE2M1(ordered);
  }
  uint32_t scales = static_cast<uint32_t>(scale) << (8 * BlockGroup(block));
  scales |= __shfl_xor_sync(~0u, scales, 1);
  scales |= __shfl_xor_sync(~0u, scales, 2);
  if (block == 0) *reinterpret_cast<uint32_t*>(piece + ScaleOffset(u, g)) = scales;
}

}  // namespace nibble::kernels::cuda::w4a4
