// Numbers of an NVFP4 cache as BF16, exactly: a code at the right bits is its value times 2^-126, a
// scale is brought to 2^118 times its value, so that their product lacks kNvfp4Rest, which scores
// and outputs are multiplied with.
//
// Dimensions of an atom change places, so that pairs of codes half a word apart are pairs of a
// fragment: lane q of a quad has four neighbours from Nvfp4QuadDim(q) on, the first and third of
// them in columns 2q and 2q + 1, the others in 2q + 8 and 2q + 9.
#pragma once

#include <cstdint>

#include "kernels/cuda/linear/fragments.cuh"

namespace nibble::kernels::cuda {

inline constexpr float kNvfp4Rest = 0x1p8f;

// 0, 8, 4, 12: where two lanes share a block's word, each has one half of it.
__device__ __forceinline__ int Nvfp4QuadDim(int q) { return q % 2 * 8 + q / 2 * 4; }

// Where dimension d of a 16-wide atom stands in it.
__device__ __forceinline__ int Nvfp4Slot(int d) {
  return d / 4 % 2 * 4 + d / 8 * 2 + d % 4 / 2 + d % 2 * 8;
}

// Of an atom of 16 dimensions of a query row: this lane's words of an A fragment.
__device__ __forceinline__ uint2 Nvfp4QueryFragment(const uint16_t* atom) {
  const auto d = *reinterpret_cast<const uint2*>(atom + Nvfp4QuadDim(threadIdx.x % 4));
  return {__byte_perm(d.x, d.y, 0x5410), __byte_perm(d.x, d.y, 0x7632)};
}

// Of eight codes number kIndex (0..3) and the one half a word on, times 2^-126.
template <int kIndex>
__device__ __forceinline__ uint32_t E2M1Pair(uint32_t codes) {
  const uint32_t sign = codes << (12 - 4 * kIndex);
  const uint32_t rest = kIndex < 2 ? codes << (6 - 4 * kIndex) : codes >> (4 * kIndex - 6);
  return (sign & 0x80008000u) | (rest & 0x01C001C0u);
}

// a * b per half, exact: also before sm_90, which has no multiplication of BF16.
__device__ __forceinline__ uint32_t MultiplyHalves(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  return product;
}

// Two scales in the upper bytes of the halves, times 2^118.
__device__ __forceinline__ uint32_t Nvfp4Scales(uint32_t codes) {
  constexpr uint32_t kTwoTo127 = 0x7F007F00u, kTwoTo111 = 0x77007700u;
  return MultiplyHalves(MultiplyHalves(fragments::PlaceE4M3(codes), kTwoTo127), kTwoTo111);
}

// A block in the order of Nvfp4Slot. codes: 16, the first in the lowest nibble; the block's scale
// is half `half` of `scales`, which Nvfp4Scales made.
__device__ __forceinline__ void WidenNvfp4Block(uint2 codes, uint32_t scales, int half,
                                                uint4 (&out)[2]) {
  const uint32_t low = __byte_perm(codes.x, 0, 0x3120), high = __byte_perm(codes.y, 0, 0x3120);
  const auto times = [&](uint32_t pair) { return fragments::MultiplyBf16(pair, scales, half); };
  out[0] = {times(E2M1Pair<0>(low)), times(E2M1Pair<0>(high)), times(E2M1Pair<2>(low)),
            times(E2M1Pair<2>(high))};
  out[1] = {times(E2M1Pair<1>(low)), times(E2M1Pair<1>(high)), times(E2M1Pair<3>(low)),
            times(E2M1Pair<3>(high))};
}

}  // namespace nibble::kernels::cuda
