// Parameters of a kernel are read from a cold cache of constants.
#pragma once

#include <cstdint>

namespace nibble::kernels::cuda {

// Into the cache, where their first reads would wait for memory, one after the other. Of a
// __grid_constant__ parameter: of another the compiler would make a copy first.
template <typename Params>
__device__ __forceinline__ void TouchParams(const Params& p) {
  const auto* const words = reinterpret_cast<const uint32_t*>(&p);
  if (threadIdx.x < sizeof(Params) / 4) asm volatile("" ::"r"(words[threadIdx.x]));
}

}  // namespace nibble::kernels::cuda
