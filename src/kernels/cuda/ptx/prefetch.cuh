// Requests ahead of use, for which nobody waits.
#pragma once

namespace nibble::kernels::cuda::ptx {

// The line of `global` into L1, for loads of this CTA that follow.
__device__ __forceinline__ void PrefetchL1(const void* global) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(global));
}

}  // namespace nibble::kernels::cuda::ptx
