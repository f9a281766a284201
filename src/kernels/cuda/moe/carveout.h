// How a multiprocessor's memory is divided between L1 and shared memory. The division changes only
// while nothing runs there: a kernel with little shared memory keeps its successor, with much, from
// starting beside it, unless it asks for the same division; and the other way round.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.h"

namespace nibble::kernels::cuda::moe {

// Of the launches that follow: as much shared memory as there is, or what the kernel itself needs.
template <typename... Params>
void PreferSharedMemory(void (*kernel)(Params...), bool prefer = true) {
  cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                       cudaFuncAttributePreferredSharedMemoryCarveout,
                       prefer ? cudaSharedmemCarveoutMaxShared : cudaSharedmemCarveoutDefault);
}

// Of kernels for one token: the split that the linears before and after them ask for, too
// (linear/decode.cu), within which a block of each of two launches shares a multiprocessor.
template <typename... Params>
void ShareMultiprocessor(void (*kernel)(Params...), int64_t shared_bytes) {
  constexpr int kReservedPerBlock = 1024, kWanted = 164 * 1024;
  const int most = CurrentDevice().shared_memory_per_block + kReservedPerBlock;
  const auto wanted = std::max<int64_t>(kWanted, shared_bytes + kReservedPerBlock);
  cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                       cudaFuncAttributePreferredSharedMemoryCarveout,
                       static_cast<int>(std::min<int64_t>(100 * wanted / most, 100)));
}

}  // namespace nibble::kernels::cuda::moe
