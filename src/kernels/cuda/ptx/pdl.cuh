// Programmatic dependent launch. Before sm_90 launches are ordered by the stream alone.
#pragma once

namespace nibble::kernels::cuda::ptx {

// Until the predecessor's grid has ended and its writes are visible.
__device__ __forceinline__ void WaitForPredecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The successor may start. A hint: it still waits for this grid's end where it asks to.
__device__ __forceinline__ void LaunchSuccessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace nibble::kernels::cuda::ptx
