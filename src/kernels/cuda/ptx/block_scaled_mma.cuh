// The block-scaled FP4 MMA of a warp: C += A B with E2M1 operands and UE4M3 scales per 16 columns.
// On SM 12.x (targets 120f, 120a, 121a) the instruction; on other GPUs an emulation with the same
// fragments and the bits of its published model, for tests: many hundred instructions. Fragments
// and arithmetic: block_scaled.h.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/block_scaled.h"

#if defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && \
    (__CUDA_ARCH_FAMILY_SPECIFIC__ == 1200 || __CUDA_ARCH_FAMILY_SPECIFIC__ == 1210)
#define NIBBLE_HAVE_BLOCK_SCALED_MMA 1
#endif

namespace nibble::kernels::cuda::ptx {

// kSelectorA (0, 1) and kSelectorB (0..3): whose scale registers of each quad are read.
template <int kSelectorA, int kSelectorB>
__device__ __forceinline__ void BlockScaledMma(float (&c)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2], uint32_t scales_a,
                                               uint32_t scales_b) {
  static_assert(kSelectorA >= 0 && kSelectorA < 2 && kSelectorB >= 0 && kSelectorB < 4);
#ifdef NIBBLE_HAVE_BLOCK_SCALED_MMA
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X"
      ".f32.e2m1.e2m1.f32.ue4m3 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3}, "
      "{%10}, {0, %11}, {%12}, {0, %13};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(scales_a),
        "n"(kSelectorA), "r"(scales_b), "n"(kSelectorB));
#else
  constexpr unsigned kAll = ~0u;
  const int lane = static_cast<int>(threadIdx.x % 32);
  int dots[4][kScaleGroups] = {};  // of c[v]
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
#pragma unroll 1
    for (int q = 0; q < 4; ++q) {
      const int group = 2 * half + q / 2;
      const uint32_t own = half == 0 ? b[0] : b[1];
      const uint32_t columns[2] = {__shfl_sync(kAll, own, lane % 4 * 8 + q),
                                   __shfl_sync(kAll, own, lane % 4 * 8 + 4 + q)};
      const uint32_t rows[2] = {__shfl_sync(kAll, half == 0 ? a[0] : a[2], lane / 4 * 4 + q),
                                __shfl_sync(kAll, half == 0 ? a[1] : a[3], lane / 4 * 4 + q)};
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int dot = DotE2M1(rows[v / 2], columns[v % 2]);
#pragma unroll
        for (int j = 0; j < kScaleGroups; ++j)
          if (j == group) dots[v][j] += dot;
      }
    }
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const FragmentPlace at = BlockScaledC(lane, v);
    c[v] =
        BlockScaledSum(c[v], dots[v], __shfl_sync(kAll, scales_a, ScaleLaneA(at.row, kSelectorA)),
                       __shfl_sync(kAll, scales_b, ScaleLaneB(at.column, kSelectorB)));
  }
#endif
}

}  // namespace nibble::kernels::cuda::ptx
