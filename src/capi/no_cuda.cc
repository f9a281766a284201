#include "capi/current_gpu.h"

#if !NIBBLE_CUDA

namespace nibble::capi {

Status SelectGpu(int) { return Fail(Code::kUnsupported, "this library was built without CUDA"); }

Result<HostBytes> OnHost(const void* memory, size_t) {
  return HostBytes{.data = static_cast<const std::byte*>(memory)};
}

}  // namespace nibble::capi

#endif
