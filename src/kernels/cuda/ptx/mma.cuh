// Tensor-core atoms of a warp, m16n8k16, BF16 and F16 in, FP32 accumulation.
//
// Lane t = 4 g + q. A (16, 16): a0 = row g, columns 2q, 2q+1; a1 = row g + 8, the same; a2 = row g,
// columns 2q+8, 2q+9; a3 = row g + 8, these. B (16, 8): b0 = rows 2q, 2q+1 of column g; b1 = rows
// 2q+8, 2q+9. C (16, 8): c0, c1 = row g, columns 2q, 2q+1; c2, c3 = row g + 8, the same.
#pragma once

#include <cstdint>

namespace nibble::kernels::cuda::ptx {

__device__ __forceinline__ void MmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void MmaF16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace nibble::kernels::cuda::ptx
