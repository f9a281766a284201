// Hopper's copies of boxes of a tensor into shared memory (sm_90): the tensor and the box are
// described by a map that the host makes and that is a kernel parameter.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/ptx/bulk_copy.cuh"

#if __CUDA_ARCH__ >= 900

namespace nibble::kernels::cuda::ptx {

// The box at (x, y, z), x fastest, for a warp whose lanes all come here with the same arguments, of
// which one does it. Completes on the barrier with the box's bytes.
__device__ __forceinline__ void TensorCopyIf(bool mine, void* shared, const CUtensorMap& map, int x,
                                             int y, int z, uint64_t* barrier) {
  asm volatile(
      "{.reg .pred mine;\n"
      "setp.ne.u32 mine, %6, 0;\n"
      "@mine cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];}" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(SharedAddress(barrier)),
      "r"(static_cast<uint32_t>(mine))
      : "memory");
}

}  // namespace nibble::kernels::cuda::ptx

#endif
