// Every kernel of the backend is launched here, with programmatic dependent launch: it may start
// while its predecessor on the stream finishes, and itself calls ptx::WaitForPredecessor() before
// it reads what that wrote or writes what that reads. Included by .cu files alone.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "kernels/cuda/device_facts.h"
#include "kernels/op_params.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 100 == 12 && !defined(__CUDA_ARCH_FAMILY_SPECIFIC__)
#error "targets 120 and 121 lack the FP4 instructions: build 120f, which runs on 12.0 and 12.1"
#endif

namespace nibble::kernels::cuda {

inline cudaStream_t StreamOf(const OpContext& context) {
  return static_cast<cudaStream_t>(context.stream);
}

// Errors surface through Device::failure(). `smem`: dynamic shared memory; above 48 KB the kernel's
// limit is raised first. `cluster`: the CTAs that share one (sm_90), divisors of the grid's.
template <typename... Params, typename... Args>
void LaunchPdlCluster(void (*kernel)(Params...), dim3 grid, dim3 block, dim3 cluster, size_t smem,
                      cudaStream_t stream, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  NoteLaunch(smem);
  if (smem > 48 * 1024) {
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                         cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem));
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {.x = cluster.x, .y = cluster.y, .z = cluster.z};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster.x * cluster.y * cluster.z > 1 ? 2 : 1;
  cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...);
}

template <typename... Params, typename... Args>
void LaunchPdl(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream,
               Args&&... args) {
  LaunchPdlCluster(kernel, grid, block, dim3(1), smem, stream, std::forward<Args>(args)...);
}

}  // namespace nibble::kernels::cuda
