// Asynchronous copies that few kernels need: of four bytes, and with offsets of both sides in the
// instruction.
#pragma once

#include "kernels/cuda/ptx/async_copy.cuh"

namespace nibble::kernels::cuda::ptx {

__device__ __forceinline__ void CopyAsync4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(SharedAddress(shared)), "l"(global)
               : "memory");
}

// 16 bytes, kSharedOffset and kOffset further on, of which `bytes` (16 or 0) are copied and the
// rest become zero.
template <int kSharedOffset, int kOffset>
__device__ __forceinline__ void CopyAsync16OrZeroAt(uint32_t shared, const void* global,
                                                    int bytes) {
  asm volatile("cp.async.cg.shared.global [%0 + %3], [%1 + %4], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes), "n"(kSharedOffset), "n"(kOffset)
               : "memory");
}

}  // namespace nibble::kernels::cuda::ptx
