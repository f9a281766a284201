// How a multiprocessor's memory is divided between L1 and shared memory. The division changes only
// while nothing runs there: a kernel with little shared memory keeps its successor, with much, from
// starting beside it, unless it asks for the same division; and the other way round.
#pragma once

#include <cuda_runtime.h>

namespace nibble::kernels::cuda::moe {

// Of the launches that follow: as much shared memory as there is, or what the kernel itself needs.
template <typename... Params>
void PreferSharedMemory(void (*kernel)(Params...), bool prefer = true) {
  cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                       cudaFuncAttributePreferredSharedMemoryCarveout,
                       prefer ? cudaSharedmemCarveoutMaxShared : cudaSharedmemCarveoutDefault);
}

}  // namespace nibble::kernels::cuda::moe
