// Groups of neighbouring BF16 numbers of a head as floats: reading, rounding, turning, and the
// write to activations and to the paged cache. Groups of four are aligned to four elements.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/op_params.h"

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

// Where k or v are written, and how FP8 scales them.
struct CacheSide {
  std::byte* base;
  float scale;
  float inverse;  // of scale, correctly rounded; 0: Quotient is to divide
};

// What rounds to E4M3 as the IEEE quotient x / scale does. Two corrections of x * inverse by the
// exact remainder give the correctly rounded quotient (Markstein 1990); beyond 1,024 it saturates
// whatever its last bits.
__device__ __forceinline__ float QuotientByInverse(float x, const CacheSide& side) {
  const float rough = x * side.inverse;
  float q = fmaf(fmaf(-rough, side.scale, x), side.inverse, rough);
  q = fmaf(fmaf(-q, side.scale, x), side.inverse, q);
  return fabsf(rough) < 1024.0f ? copysignf(q, x) : rough;
}

__device__ __forceinline__ float Quotient(float x, const CacheSide& side) {
  if (side.inverse == 0.0f) return __fdiv_rn(x, side.scale);
  return QuotientByInverse(x, side);
}

// Into the cache, from element `at` on.
template <int kCount>
__device__ __forceinline__ void StoreInCache(KvFormat format, const CacheSide& side, int64_t at,
                                             const float (&values)[kCount]) {
  if (format == KvFormat::kBf16) {
    StoreBf16(reinterpret_cast<uint16_t*>(side.base) + at, values);
  } else if constexpr (kCount == 4) {
    const uint32_t low = ptx::PackE4m3(Quotient(values[0], side), Quotient(values[1], side));
    const uint32_t high = ptx::PackE4m3(Quotient(values[2], side), Quotient(values[3], side));
    *reinterpret_cast<uint32_t*>(side.base + at) = low | (high << 16);
  } else {
    side.base[at] = static_cast<std::byte>(ptx::PackE4m3(Quotient(values[0], side), 0.0f));
  }
}

// For kernels. Remainders are exact while scales are far from the ends of FP32.
inline CacheSide SideOf(std::byte* base, float scale) {
  const bool sane = scale > 0x1p-60f && scale < 0x1p60f;
  return {base, scale, sane ? 1.0f / scale : 0.0f};
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
