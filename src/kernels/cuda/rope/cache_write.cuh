// Groups of neighbouring BF16 numbers of a head as floats: reading, rounding, turning, and the
// write to activations and to the paged cache. Groups of four are aligned to four elements.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/ops.h"

namespace nibble::kernels::cuda {

// Of an element of the cache; the page size is a power of two.
__device__ __forceinline__ int64_t HeadOffset(const KvLayerView& cache, int64_t slot, int kv_head) {
  const int shift = __ffs(cache.page_size) - 1;
  const int64_t row =
      (((slot >> shift) * cache.kv_heads + kv_head) << shift) + (slot & (cache.page_size - 1));
  return row * cache.head_dim;
}

template <int kCount>
__device__ __forceinline__ void LoadBf16(const uint16_t* from, float (&values)[kCount]) {
  static_assert(kCount == 1 || kCount == 4);
  if constexpr (kCount == 4) {
    const uint2 packed = *reinterpret_cast<const uint2*>(from);
    values[0] = ptx::FirstBf16(packed.x);
    values[1] = ptx::SecondBf16(packed.x);
    values[2] = ptx::FirstBf16(packed.y);
    values[3] = ptx::SecondBf16(packed.y);
  } else {
    values[0] = ptx::FirstBf16(*from);
  }
}

template <int kCount>
__device__ __forceinline__ void LoadF32(const float* from, float (&values)[kCount]) {
  static_assert(kCount == 1 || kCount == 4);
  if constexpr (kCount == 4) {
    const float4 vector = *reinterpret_cast<const float4*>(from);
    values[0] = vector.x, values[1] = vector.y, values[2] = vector.z, values[3] = vector.w;
  } else {
    values[0] = *from;
  }
}

template <int kCount>
__device__ __forceinline__ void StoreBf16(uint16_t* to, const float (&values)[kCount]) {
  if constexpr (kCount == 4) {
    *reinterpret_cast<uint2*>(to) = {ptx::PackBf16(values[0], values[1]),
                                     ptx::PackBf16(values[2], values[3])};
  } else {
    *to = static_cast<uint16_t>(ptx::PackBf16(values[0], 0.0f));
  }
}

// Into the cache, from element `at` on. FP8 divides as ops.h says: IEEE.
template <int kCount>
__device__ __forceinline__ void StoreInCache(const KvLayerView& cache, std::byte* base, float scale,
                                             int64_t at, const float (&values)[kCount]) {
  if (cache.format == KvFormat::kBf16) {
    StoreBf16(reinterpret_cast<uint16_t*>(base) + at, values);
  } else if constexpr (kCount == 4) {
    const uint32_t low = ptx::PackE4m3(__fdiv_rn(values[0], scale), __fdiv_rn(values[1], scale));
    const uint32_t high = ptx::PackE4m3(__fdiv_rn(values[2], scale), __fdiv_rn(values[3], scale));
    *reinterpret_cast<uint32_t*>(base + at) = low | (high << 16);
  } else {
    base[at] = static_cast<std::byte>(ptx::PackE4m3(__fdiv_rn(values[0], scale), 0.0f));
  }
}

// Both rounded to BF16.
__device__ __forceinline__ void RoundPair(float* a, float* b) {
  const uint32_t packed = ptx::PackBf16(*a, *b);
  *a = ptx::FirstBf16(packed);
  *b = ptx::SecondBf16(packed);
}

// (first, second) turned by an angle; every product is rounded, as BF16 tensors are.
__device__ __forceinline__ void Turn(float cos, float sin, float* first, float* second) {
  float first_cos = *first * cos, second_sin = -*second * sin;
  float second_cos = *second * cos, first_sin = *first * sin;
  RoundPair(&first_cos, &second_sin);
  RoundPair(&second_cos, &first_sin);
  *first = first_cos + second_sin;
  *second = second_cos + first_sin;
  RoundPair(first, second);
}

}  // namespace nibble::kernels::cuda
