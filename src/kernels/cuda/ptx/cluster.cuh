// Thread-block clusters (sm_90): their barrier, and stores into a peer's shared memory that
// complete on a barrier there. Kernels that use them are launched with LaunchPdlCluster, on sm_90
// and later.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/async_copy.cuh"

namespace nibble::kernels::cuda::ptx {

// What all threads of the cluster did before is seen by all after. Slow: it waits for every earlier
// access to global memory, too.
__device__ __forceinline__ void SyncCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#endif
}

// The two halves of a cluster barrier that orders nothing but execution and what fences order: all
// threads of all CTAs arrive, then wait.
__device__ __forceinline__ void ArriveAtCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void WaitForCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// A barrier in shared memory whose phases end when one thread has arrived and the bytes that it
// announced have come. Peers may send to it after a cluster barrier that follows Init.
class BytesBarrier {
 public:
  __device__ __forceinline__ void Init() {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(
            SharedAddress(&state_))
        : "memory");
#endif
  }

  // By one thread, once per phase; bytes may have come already.
  __device__ __forceinline__ void Expect(uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(&state_)),
        "r"(bytes)
        : "memory");
#endif
  }

  // Until the phase of this parity (0 for the first) has ended.
  __device__ __forceinline__ void Wait(uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(SharedAddress(&state_)),
        "r"(parity)
        : "memory");
#endif
  }

  // kCount neighbouring floats into the shared memory of CTA `rank`, completing on this barrier
  // there. `to` is this CTA's own address of the place, aligned to all of them.
  template <int kCount>
  __device__ __forceinline__ void Send(float* to, uint32_t rank, const float (&x)[kCount]) {
    static_assert(kCount == 1 || kCount == 2 || kCount == 4);
#if __CUDA_ARCH__ >= 900
    uint32_t address, barrier;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(address)
                 : "r"(SharedAddress(to)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(barrier)
                 : "r"(SharedAddress(&state_)), "r"(rank));
    if constexpr (kCount == 1) {
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
              address),
          "f"(x[0]), "r"(barrier)
          : "memory");
    } else if constexpr (kCount == 2) {
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::
              "r"(address),
          "f"(x[0]), "f"(x[1]), "r"(barrier)
          : "memory");
    } else {
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
          "[%5];" ::"r"(address),
          "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "r"(barrier)
          : "memory");
    }
#endif
  }

 private:
  uint64_t state_;
};

}  // namespace nibble::kernels::cuda::ptx
