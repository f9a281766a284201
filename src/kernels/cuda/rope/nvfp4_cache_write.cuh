// Heads into an NVFP4 cache (kernels/nvfp4_cache.h): a thread takes a block of 16 dimensions, from
// where the head was put together in shared memory.
#pragma once

#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/nvfp4_cache.h"

namespace nibble::kernels::cuda {

// The row of the cache that a slot has in a head; the page size is a power of two.
__device__ __forceinline__ int64_t CacheRowOf(const KvLayerView& cache, int64_t slot, int kv_head) {
  const int shift = __ffs(cache.page_size) - 1;
  return (((slot >> shift) * cache.kv_heads + kv_head) << shift) + (slot & (cache.page_size - 1));
}

// Eight BF16 numbers of a block, whose others lane ^ 1 has: their codes, the first in the lowest
// nibble, and the block's scale. By whole warps.
__device__ __forceinline__ uint32_t QuantizeHalfBlock(uint4 numbers, uint8_t& scale) {
  const uint32_t pairs[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    values[i] = i % 2 == 0 ? ptx::FirstBf16(pairs[i / 2]) : ptx::SecondBf16(pairs[i / 2]);
  const float largest = MaxMagnitude(values, 8);
  scale = Nvfp4ActivationScale(fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1)), 1.0f);
  const float multiplier = Nvfp4ActivationMultiplier(scale, 1.0f);
#pragma unroll
  for (float& value : values) value *= multiplier;
  return ptx::PackE2M1(values);
}

// head: (Dh) BF16.
__device__ __forceinline__ void StoreNvfp4Block(const KvLayerView& cache, std::byte* base,
                                                int64_t row, int block, const uint16_t* head) {
  float values[kNvfp4Block];
#pragma unroll
  for (int i = 0; i < kNvfp4Block; ++i) values[i] = ptx::FirstBf16(head[block * kNvfp4Block + i]);
  const uint8_t scale = Nvfp4ActivationScale(MaxMagnitude(values, kNvfp4Block), 1.0f);
  const float multiplier = Nvfp4ActivationMultiplier(scale, 1.0f);
  float low[8], high[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    low[i] = values[i] * multiplier;
    high[i] = values[8 + i] * multiplier;
  }
  const Nvfp4CacheRow place = Nvfp4RowOf(cache.page_size, cache.head_dim, row);
  *reinterpret_cast<uint2*>(base + place.codes + block * 8) = {ptx::PackE2M1(low),
                                                               ptx::PackE2M1(high)};
  base[place.scales + block] = static_cast<std::byte>(scale);
}

}  // namespace nibble::kernels::cuda
