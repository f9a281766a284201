#include "capi/current_gpu.h"

#include <cuda_runtime_api.h>

namespace nibble::capi {
namespace {

Status StatusOf(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  return Fail(Code::kInternal, "{}: {}", what, cudaGetErrorString(error));
}

}  // namespace

Status SelectGpu(int index) { return StatusOf(cudaSetDevice(index), "choosing the GPU"); }

Result<HostBytes> OnHost(const void* memory, size_t bytes) {
  HostBytes result = {.data = static_cast<const std::byte*>(memory)};
  cudaPointerAttributes attributes = {};
  NIBBLE_TRY(StatusOf(cudaPointerGetAttributes(&attributes, memory), "looking at a pointer"));
  if (attributes.type != cudaMemoryTypeDevice) return result;
  result.owned = std::make_unique_for_overwrite<std::byte[]>(bytes);
  result.data = result.owned.get();
  cudaError_t error = cudaDeviceSynchronize();
  if (error == cudaSuccess)
    error = cudaMemcpy(result.owned.get(), memory, bytes, cudaMemcpyDeviceToHost);
  NIBBLE_TRY(StatusOf(error, "reading a weight from the GPU"));
  return result;
}

}  // namespace nibble::capi
