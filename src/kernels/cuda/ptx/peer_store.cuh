// Plain stores into the shared memory of a CTA of the same cluster (sm_90). A cluster barrier
// before: the peer has begun; one after: it sees them.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/async_copy.cuh"

namespace nibble::kernels::cuda::ptx {

// Where CTA `rank` has what this CTA has at `shared`.
__device__ __forceinline__ uint32_t PeerAddress(const void* shared, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(SharedAddress(shared)), "r"(rank));
  return address;
#else
  return SharedAddress(shared);
#endif
}

__device__ __forceinline__ void StoreToPeer(uint32_t address, float value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
#else
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
#endif
}

}  // namespace nibble::kernels::cuda::ptx
