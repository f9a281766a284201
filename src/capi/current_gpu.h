// What the C functions ask the CUDA runtime for beside the device layer.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "base/error.h"

namespace nibble::capi {

// Makes GPU `index` the calling thread's.
Status SelectGpu(int index);

// Memory of the host with the same bytes, and who owns them: `memory` itself where the host can
// read it, else a copy, made when all work on the GPU has ended.
struct HostBytes {
  const std::byte* data = nullptr;
  std::unique_ptr<std::byte[]> owned;
};
Result<HostBytes> OnHost(const void* memory, size_t bytes);

}  // namespace nibble::capi
