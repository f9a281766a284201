// Loads that stay where they are written.
#pragma once

namespace nibble::kernels::cuda::ptx {

// A plain load. The compiler would move one into the branch that needs its value, where a thread's
// loads wait for each other.
__device__ __forceinline__ float LoadHere(const float* from) {
  float value;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
  return value;
}

}  // namespace nibble::kernels::cuda::ptx
