// Hopper's bulk copies into shared memory, the barriers that they complete on, and clusters
// (sm_90).
//
// A barrier counts arrivals and bytes; its phase flips when both are complete. Wait(parity) returns
// once the phase of that parity has ended: start with 0 for "filled", with 1 for "free" (which
// returns at once on a fresh barrier).
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/named_barrier.cuh"

#if __CUDA_ARCH__ >= 900

namespace nibble::kernels::cuda::ptx {

__device__ __forceinline__ void BarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}

// After the inits, before other threads or copies use the barriers.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void BarrierArriveAt(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  BarrierArriveAt(SharedAddress(barrier));
}

// Arrives, and adds bytes to what this phase waits for.
__device__ __forceinline__ void BarrierExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ __forceinline__ void BarrierWaitAt(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, uint32_t parity) {
  BarrierWaitAt(SharedAddress(barrier), parity);
}

// Whether the phase has ended; asked ahead of a wait, which it may spare.
__device__ __forceinline__ bool BarrierTest(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{.reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;}"
      : "=r"(done)
      : "r"(SharedAddress(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

// A multiple of 16 bytes, both sides 16-byte aligned.
__device__ __forceinline__ void BulkCopy(void* shared, const void* global, uint32_t bytes,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

// For a warp whose lanes all come here with the same arguments, of which one does it: operands of a
// copy have to be uniform, which the compiler would otherwise make sure of in a loop.
__device__ __forceinline__ void BarrierExpectIf(bool mine, uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "{.reg .pred mine;\n"
      "setp.ne.u32 mine, %2, 0;\n"
      "@mine mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;}" ::"r"(SharedAddress(barrier)),
      "r"(bytes), "r"(static_cast<uint32_t>(mine))
      : "memory");
}
__device__ __forceinline__ void BulkCopyIf(bool mine, void* shared, const void* global,
                                           uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "{.reg .pred mine;\n"
      "setp.ne.u32 mine, %4, 0;\n"
      "@mine cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];}" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier)), "r"(static_cast<uint32_t>(mine))
      : "memory");
}
// For a warp whose lanes are all here: one of them expects the bytes and copies them. ptxas knows
// that it is one, and what else takes a loop over the lanes is two instructions. Addresses are of
// shared memory.
__device__ __forceinline__ void BulkCopyOfWarp(uint32_t shared, const void* global, uint32_t bytes,
                                               uint32_t barrier) {
  asm volatile(
      "{.reg .pred one;\n"
      "elect.sync _|one, 0xFFFFFFFF;\n"
      "@one mbarrier.arrive.expect_tx.shared::cta.b64 _, [%3], %2;\n"
      "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];}" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// The same for two neighbours in global memory that go to different places.
__device__ __forceinline__ void BulkCopiesOfWarp(uint32_t first, const void* global,
                                                 uint32_t first_bytes, uint32_t second,
                                                 uint32_t second_bytes, uint32_t barrier) {
  asm volatile(
      "{.reg .pred one;\n"
      ".reg .u32 bytes;\n"
      ".reg .u64 from;\n"
      "elect.sync _|one, 0xFFFFFFFF;\n"
      "add.u32 bytes, %2, %4;\n"
      "cvt.u64.u32 from, %2;\n"
      "add.u64 from, from, %1;\n"
      "@one mbarrier.arrive.expect_tx.shared::cta.b64 _, [%5], bytes;\n"
      "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%5];\n"
      "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%3], [from], %4, "
      "[%5];}" ::"r"(first),
      "l"(global), "r"(first_bytes), "r"(second), "r"(second_bytes), "r"(barrier)
      : "memory");
}

// Before others let wgmma or bulk copies touch what this thread's ordinary accesses and cp.async
// wrote to shared memory.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Four 8 x 8 matrices of 16-bit elements, each transposed: lane l = 8 m + r names where row r of
// matrix m transposed goes, 16 bytes. values[m]: lane 4 g + q holds row g, columns 2 q, 2 q + 1.
__device__ __forceinline__ void StoreMatricesTransposed(void* row, const uint32_t (&values)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   SharedAddress(row)),
               "r"(values[0]), "r"(values[1]), "r"(values[2]), "r"(values[3])
               : "memory");
}

}  // namespace nibble::kernels::cuda::ptx

#endif
