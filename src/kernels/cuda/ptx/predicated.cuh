// Stores under a predicate, where a branch would keep the compiler from mixing the code around it.
#pragma once

namespace nibble::kernels::cuda::ptx {

__device__ __forceinline__ void StorePairIf(bool wanted, float* to, float a, float b) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.s32 wanted, %0, 0;\n"
      "@wanted st.global.v2.f32 [%1], {%2, %3};\n}" ::"r"(static_cast<int>(wanted)),
      "l"(to), "f"(a), "f"(b)
      : "memory");
}

}  // namespace nibble::kernels::cuda::ptx
