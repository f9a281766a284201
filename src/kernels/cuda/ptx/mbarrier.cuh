// What bulk_copy.cuh's barriers need where the roles of a CTA meet without bulk copies (sm_90).
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/bulk_copy.cuh"

#if __CUDA_ARCH__ >= 900

namespace nibble::kernels::cuda::ptx {

// Arrives once this thread's copies so far (cp.async) are done.
__device__ __forceinline__ void BarrierArriveAfterCopies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(SharedAddress(barrier))
               : "memory");
}

}  // namespace nibble::kernels::cuda::ptx

#endif
