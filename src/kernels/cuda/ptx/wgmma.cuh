// Hopper's warpgroup MMA: D (64, N) += A (64, 16) B (16, N), BF16 in, FP32 accumulation, sm_90a.
//
// A lies in registers: warp w of the warpgroup owns rows 16 w .. 16 w + 15, and its fragments of A
// and D are those of mma.cuh (D: n / 8 of them side by side). B is in shared memory, N rows of 64
// BF16 (128 bytes, K contiguous) in the 128-byte swizzle: of row r, the 16-byte chunk c is stored
// at chunk c ^ (r mod 8). Its groups of 8 rows are 1,024 bytes each, 1,024-byte aligned.
//
// The instructions are asynchronous. Registers of A and D must not be touched between Fence and the
// Wait that retires the group; bits are those of a chain of m16n8k16 (wgmma_test.cc).
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/async_copy.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define NIBBLE_HAVE_WGMMA 1
#endif

#ifdef NIBBLE_HAVE_WGMMA

namespace nibble::kernels::cuda::ptx {

// Before the first of a chain of WgmmaBf16, and after registers of A or D were written.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most kPending of the newest groups are under way.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of an accumulator across this point.
template <int kCount>
__device__ __forceinline__ void WgmmaPin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// The same for fragments of A: behind the wait for their group, so that nothing else has their
// registers until then. ptxas sees to that by itself only where no branch stands between.
template <int kAtoms>
__device__ __forceinline__ void WgmmaPin(uint32_t (&a)[kAtoms][4]) {
#pragma unroll
  for (int j = 0; j < kAtoms; ++j)
    asm volatile("" : "+r"(a[j][0]), "+r"(a[j][1]), "+r"(a[j][2]), "+r"(a[j][3])::"memory");
}

// Of columns 0..15 of B; those of atom j are 32 j bytes on.
__device__ __forceinline__ uint64_t WgmmaDescriptor(const void* b) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kGroupBytes = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kUnusedStride = uint64_t{1} << 16;
  return kSwizzle128 | kGroupBytes | kUnusedStride | ((SharedAddress(b) & 0x3FFFF) >> 4);
}

// `bytes`, a multiple of 16, further on: addresses stay in the lower half.
__device__ __forceinline__ uint64_t WgmmaDescriptorAt(uint64_t descriptor, int bytes) {
  return descriptor >> 32 << 32 | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

template <int kN>
__device__ __forceinline__ void WgmmaBf16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                          bool accumulate);

#define NIBBLE_ACC4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define NIBBLE_ACC16(i) NIBBLE_ACC4(i), NIBBLE_ACC4(i + 4), NIBBLE_ACC4(i + 8), NIBBLE_ACC4(i + 12)

template <>
__device__ __forceinline__ void WgmmaBf16<8>(float (&d)[4], const uint32_t (&a)[4], uint64_t b,
                                             bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %9, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, %8, p, 1, 1, 0;}"
      : NIBBLE_ACC4(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void WgmmaBf16<16>(float (&d)[8], const uint32_t (&a)[4], uint64_t b,
                                              bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, %12, p, 1, 1, 0;}"
      : NIBBLE_ACC4(0), NIBBLE_ACC4(4)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void WgmmaBf16<32>(float (&d)[16], const uint32_t (&a)[4], uint64_t b,
                                              bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, p, 1, 1, 0;}"
      : NIBBLE_ACC16(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void WgmmaBf16<64>(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                              bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 0;}"
      : NIBBLE_ACC16(0), NIBBLE_ACC16(16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void WgmmaBf16<96>(float (&d)[48], const uint32_t (&a)[4], uint64_t b,
                                              bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %53, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
      "{%48, %49, %50, %51}, %52, p, 1, 1, 0;}"
      : NIBBLE_ACC16(0), NIBBLE_ACC16(16), NIBBLE_ACC16(32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void WgmmaBf16<128>(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                               bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 0;}"
      : NIBBLE_ACC16(0), NIBBLE_ACC16(16), NIBBLE_ACC16(32), NIBBLE_ACC16(48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void WgmmaBf16<176>(float (&d)[88], const uint32_t (&a)[4], uint64_t b,
                                               bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %93, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n176k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87}, "
      "{%88, %89, %90, %91}, %92, p, 1, 1, 0;}"
      : NIBBLE_ACC16(0), NIBBLE_ACC16(16), NIBBLE_ACC16(32), NIBBLE_ACC16(48), NIBBLE_ACC16(64),
        NIBBLE_ACC4(80), NIBBLE_ACC4(84)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

// The same with B transposed: kN / 64 tiles of B, each 16 rows (K) of 64 BF16 (N contiguous) in the
// 128-byte swizzle; tiles lie `tile_bytes` apart. Rows of atom j are at 128 j more.
__device__ __forceinline__ uint64_t WgmmaDescriptorTransposed(const void* b, uint32_t tile_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kGroupBytes = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kGroupBytes | uint64_t{tile_bytes >> 4} << 16 |
         ((SharedAddress(b) & 0x3FFFF) >> 4);
}

template <int kN>
__device__ __forceinline__ void WgmmaBf16Transposed(float (&d)[kN / 2], const uint32_t (&a)[4],
                                                    uint64_t b, bool accumulate);

template <>
__device__ __forceinline__ void WgmmaBf16Transposed<32>(float (&d)[16], const uint32_t (&a)[4],
                                                        uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, p, 1, 1, 1;}"
      : NIBBLE_ACC16(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void WgmmaBf16Transposed<64>(float (&d)[32], const uint32_t (&a)[4],
                                                        uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;}"
      : NIBBLE_ACC16(0), NIBBLE_ACC16(16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void WgmmaBf16Transposed<128>(float (&d)[64], const uint32_t (&a)[4],
                                                         uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
      : NIBBLE_ACC16(0), NIBBLE_ACC16(16), NIBBLE_ACC16(32), NIBBLE_ACC16(48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

// A in shared memory as B is, 64 rows of it.
__device__ __forceinline__ void WgmmaBf16SharedA(float (&d)[32], uint64_t a, uint64_t b,
                                                 bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 0, 0;}"
      : NIBBLE_ACC16(0), NIBBLE_ACC16(16)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}

// D (64, N) += A (64, 32) B (32, N), E4M3 in. A register has four neighbouring k of a row: a[0] row
// g, k 4 q .. 4 q + 3; a[1] row g + 8, the same; a[2] and a[3] these rows, k 16 + 4 q. B: rows of
// 128 E4M3 in the same swizzle; atom j's are 32 j bytes on. FP32 sums keep about 14 bits: chains
// should be short.
template <int kN>
__device__ __forceinline__ void WgmmaE4m3(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                          bool accumulate);

template <>
__device__ __forceinline__ void WgmmaE4m3<64>(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                              bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1;}"
      : NIBBLE_ACC16(0), NIBBLE_ACC16(16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

template <>
__device__ __forceinline__ void WgmmaE4m3<192>(float (&d)[96], const uint32_t (&a)[4], uint64_t b,
                                               bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %101, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
      "{%96, %97, %98, %99}, %100, p, 1, 1;}"
      : NIBBLE_ACC16(0), NIBBLE_ACC16(16), NIBBLE_ACC16(32), NIBBLE_ACC16(48), NIBBLE_ACC16(64),
        NIBBLE_ACC16(80)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

#undef NIBBLE_ACC16
#undef NIBBLE_ACC4

// Moves registers of a warpgroup's threads between its roles.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace nibble::kernels::cuda::ptx

#endif  // NIBBLE_HAVE_WGMMA
