// Asynchronous copies from global to shared memory: a thread's own (cp.async, sm_80).
#pragma once

#include <cstdint>

namespace nibble::kernels::cuda::ptx {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, past L1: for what is read once.
__device__ __forceinline__ void CopyAsync16To(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
// The same, kOffset bytes further on both sides: part of the instruction, where the compiler would
// add it to the addresses.
template <int kOffset>
__device__ __forceinline__ void CopyAsync16Behind(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;" ::"r"(shared), "l"(global),
               "n"(kOffset)
               : "memory");
}
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global) {
  CopyAsync16To(SharedAddress(shared), global);
}

// Or 16 zeros, without a look at `global`.
__device__ __forceinline__ void CopyAsync16OrZero(void* shared, const void* global, bool copy) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(copy ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void CopyAsync8(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(SharedAddress(shared)), "l"(global)
               : "memory");
}

__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most kPending of this thread's newest groups are still under way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace nibble::kernels::cuda::ptx
