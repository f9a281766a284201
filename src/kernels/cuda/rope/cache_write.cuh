// Where a head lies in the paged cache, and how numbers are written there.
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

// kCount neighbouring BF16 numbers, 1 or 2; two are aligned to two elements.
template <int kCount>
__device__ __forceinline__ void StoreBf16(uint16_t* to, const float (&values)[kCount]) {
  if constexpr (kCount == 2) {
    *reinterpret_cast<uint32_t*>(to) = ptx::PackBf16(values[0], values[1]);
  } else {
    *to = static_cast<uint16_t>(ptx::PackBf16(values[0], 0.0f));
  }
}

// The same into the cache, from element `at` on. FP8 divides as ops.h says: IEEE.
template <int kCount>
__device__ __forceinline__ void StoreInCache(const KvLayerView& cache, std::byte* base, float scale,
                                             int64_t at, const float (&values)[kCount]) {
  if (cache.format == KvFormat::kBf16) {
    StoreBf16(reinterpret_cast<uint16_t*>(base) + at, values);
  } else if constexpr (kCount == 2) {
    *reinterpret_cast<uint16_t*>(base + at) =
        ptx::PackE4m3(__fdiv_rn(values[0], scale), __fdiv_rn(values[1], scale));
  } else {
    base[at] = static_cast<std::byte>(ptx::PackE4m3(__fdiv_rn(values[0], scale), 0.0f));
  }
}

template <int kCount>
__device__ __forceinline__ void LoadBf16(const uint16_t* from, float (&values)[kCount]) {
  if constexpr (kCount == 2) {
    const uint32_t packed = *reinterpret_cast<const uint32_t*>(from);
    values[0] = ptx::FirstBf16(packed);
    values[1] = ptx::SecondBf16(packed);
  } else {
    values[0] = ptx::FirstBf16(*from);
  }
}

// (first, second) turned by an angle; every product is rounded, as BF16 tensors are.
__device__ __forceinline__ void Turn(float cos, float sin, float* first, float* second) {
  const float a = *first, b = *second;
  *first = ptx::RoundBf16(ptx::RoundBf16(a * cos) + ptx::RoundBf16(-b * sin));
  *second = ptx::RoundBf16(ptx::RoundBf16(b * cos) + ptx::RoundBf16(a * sin));
}

}  // namespace nibble::kernels::cuda
