// Thread-block clusters (sm_90): a barrier in two halves, and stores to a peer's shared memory.
// Kernels that use them are launched with LaunchPdlCluster, on sm_90 and later alone.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/async_copy.cuh"

namespace nibble::kernels::cuda::ptx {

__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

// What this thread wrote before is seen by all threads of the cluster after their ClusterWait. It
// waits for earlier stores to global memory too: place long ones between the halves.
__device__ __forceinline__ void ClusterArrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void ClusterWait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// *pointer = value in the shared memory of CTA `rank`, where `pointer` is this CTA's own address of
// that variable.
__device__ __forceinline__ void StoreToPeer(float* pointer, uint32_t rank, float value) {
#if __CUDA_ARCH__ >= 900
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(remote)
               : "r"(SharedAddress(pointer)), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(value) : "memory");
#endif
}

}  // namespace nibble::kernels::cuda::ptx
