// Barriers of some of a CTA's threads, 1..15; 0 is __syncthreads'.
#pragma once

namespace nibble::kernels::cuda::ptx {

// `threads` threads of the CTA that name the same barrier.
__device__ __forceinline__ void SyncThreads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Counts as one of SyncThreads' threads without waiting.
__device__ __forceinline__ void ArriveThreads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace nibble::kernels::cuda::ptx
