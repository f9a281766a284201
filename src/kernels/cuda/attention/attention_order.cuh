// The order in which attention sums, the same in every kernel and for every batch, prompt chunk,
// page size and split of the keys over CTAs.
//
// Keys lie in leaves of 64, blocks of 256 and groups of 4,096 at absolute positions.
//   Leaf   scores by m16n8k16 atoms ascending over Dh, from zero. p = 2^(score c - m) with c = the
//          softmax scale times log2 e and m the largest so far in the block; p is rounded to BF16
//          (not for the sum l of weights).
//   Block  starts from nothing; its leaves ascending: o and l are scaled by 2^(m_old - m), then
//          P V is accumulated upon o, atoms ascending over the keys. l is kept per lane q of a
//          quad, which holds columns 2q, 2q + 1 of every eight: a balanced tree over the leaf's
//          eight atoms. At the block's end the quad adds up.
//   Group  starts from nothing; its blocks are merged ascending, the row's groups likewise.
// A masked key has score -inf and weight 0, and a value of 0 where it was not loaded. So a leaf or
// block without a visible key changes nothing, and may be left out. FP8: E4M3 read as BF16 is
// exact times 2^-120; the factor is taken out of the scales, and dimensions of an atom are
// permuted (E4M3Slot).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::kernels::cuda {

inline constexpr int kLeafKeys = 64;
inline constexpr int kBlockKeys = 256;
inline constexpr int kGroupKeys = 4096;
inline constexpr int kBlocksPerGroup = kGroupKeys / kBlockKeys;

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kQueryScaleFp8 = 0x1p60f;    // q as it meets E4M3 keys
inline constexpr float kWeightScaleFp8 = 0x1p120f;  // p as it meets E4M3 values

__device__ __forceinline__ float MinusInfinity() { return __int_as_float(0xff800000); }

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What exponents are taken relative to: any number where nothing is visible yet.
__device__ __forceinline__ float Reference(float m) { return m == MinusInfinity() ? 0.0f : m; }

// Factors of what was there and of what comes in, when m meets another maximum.
struct MergeFactors {
  float keep;
  float add;
};

__device__ __forceinline__ MergeFactors Merge(float& m, float other) {
  const float larger = fmaxf(m, other);
  const float reference = Reference(larger);
  const MergeFactors factors = {Exp2(m - reference), Exp2(other - reference)};
  m = larger;
  return factors;
}

__device__ __forceinline__ float Merged(float old, float incoming, MergeFactors factors) {
  return __fmaf_rn(old, factors.keep, incoming * factors.add);
}

// Neighbours are added, then neighbours of those.
template <int kCount>
__device__ __forceinline__ float TreeSum(const float (&x)[kCount]) {
  float sums[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] = x[i];
#pragma unroll
  for (int n = kCount / 2; n > 0; n /= 2)
#pragma unroll
    for (int i = 0; i < n; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  return sums[0];
}

// BF16 of two weights as values of the format want them, the first in the low half.
template <bool kFp8>
__device__ __forceinline__ uint32_t PackWeights(float p0, float p1) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(p1), "f"(p0));
  if (kFp8) {  // exact: a weight is 0 or at least 2^-126
    constexpr uint32_t kMinusZeros = 0x80008000;
    const uint32_t scales = (__float_as_uint(kWeightScaleFp8) >> 16) * 0x10001;
    asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(pair) : "r"(scales), "r"(kMinusZeros));
  }
  return pair;
}

// q * kQueryScaleFp8, which is exact.
__device__ __forceinline__ uint16_t QueryForFp8(uint16_t q) {
  return __float_as_uint(__uint_as_float(uint32_t{q} << 16) * kQueryScaleFp8) >> 16;
}

// Of an atom of 16 dimensions of a query row: this lane's words of an A fragment, columns 2q, 2q +
// 1 and 2q + 8, 2q + 9.
template <bool kFp8>
__device__ __forceinline__ uint2 QueryFragment(const uint16_t* atom) {
  const int q = threadIdx.x % 4;
  if constexpr (kFp8) {
    const uint2 d = *reinterpret_cast<const uint2*>(atom + 4 * q);
    return {QueryForFp8(d.x & 0xffff) | uint32_t{QueryForFp8(d.y & 0xffff)} << 16,
            QueryForFp8(d.x >> 16) | uint32_t{QueryForFp8(d.y >> 16)} << 16};
  } else {
    return {*reinterpret_cast<const uint32_t*>(atom + 2 * q),
            *reinterpret_cast<const uint32_t*>(atom + 2 * q + 8)};
  }
}

__device__ __forceinline__ uint16_t ToBf16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// Sum of a row's weights over a quad.
__device__ __forceinline__ float QuadSum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

// The factor of o that makes it the output, once every key is in. A sink is one more logit.
__device__ __forceinline__ float OutputFactor(float m, float l, const float* sink,
                                              float value_scale) {
  if (sink == nullptr) return __fdiv_rn(value_scale, l);
  const MergeFactors factors = Merge(m, *sink * kLog2E);
  return __fdiv_rn(value_scale * factors.keep, __fmaf_rn(l, factors.keep, factors.add));
}

// Four E4M3 codes as two pairs of BF16, each value times 2^-120: bytes 0 and 2, bytes 1 and 3.
__device__ __forceinline__ uint32_t E4M3Even(uint32_t codes) {
  return ((codes << 4) & 0x07f007f0) | ((codes << 8) & 0x80008000);
}
__device__ __forceinline__ uint32_t E4M3Odd(uint32_t codes) {
  return ((codes >> 4) & 0x07f007f0) | (codes & 0x80008000);
}

// Where dimension d of a 16-wide atom stands in it, when a lane reads 4 neighbours at once.
__device__ __forceinline__ int E4M3Slot(int d) { return d / 4 * 2 + (d & 2) / 2 + (d & 1) * 8; }

}  // namespace nibble::kernels::cuda
