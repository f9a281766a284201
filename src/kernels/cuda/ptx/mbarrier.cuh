// Barriers in shared memory between the roles of a CTA, by phases (sm_80; waits as of sm_90). A
// barrier's phase ends when as many have arrived as it was made for.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/async_copy.cuh"

#if __CUDA_ARCH__ >= 900

namespace nibble::kernels::cuda::ptx {

__device__ __forceinline__ void BarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}

__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0];}" ::"r"(
                   SharedAddress(barrier))
               : "memory");
}

// Until the phase of this parity has ended; the phase before the first counts as odd.
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, int parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// Named barriers 1..15 of a CTA: `threads` that name it, of which some do not wait.
__device__ __forceinline__ void SyncNamed(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void ArriveNamed(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// What this thread wrote to shared memory becomes visible to wgmma and bulk copies.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace nibble::kernels::cuda::ptx

#endif
