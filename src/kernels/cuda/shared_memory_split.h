// How a multiprocessor's memory is divided between L1 and shared memory. The division changes only
// while nothing runs there: a kernel with little shared memory keeps its successor, with much, from
// starting beside it, unless it asks for the same division; and the other way round.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.h"

namespace nibble::kernels::cuda {

// Of every CTA's shared memory, by the driver.
inline constexpr int kReservedPerCta = 1024;

// What decode steps ask for, of one token and of up to 8: the rest is L1, which keeps x.
inline constexpr int kSplitOfOneToken = 164 * 1024;
inline constexpr int kSplitOfFewTokens = 132 * 1024;

// Bytes of shared memory of a multiprocessor that has no more than that.
inline int WholeSplit() { return CurrentDevice().shared_memory_per_block + kReservedPerCta; }

// Of the launches that follow. wanted: bytes; the driver takes the next larger split that there is.
inline void AskForSplit(const void* kernel, int64_t wanted) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                       static_cast<int>(std::min<int64_t>(100 * wanted / WholeSplit(), 100)));
}

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
  AskForSplit(reinterpret_cast<const void*>(kernel),
              std::max<int64_t>(kSplitOfOneToken, shared_bytes + kReservedPerCta));
}

}  // namespace nibble::kernels::cuda
