// The weighted sum of expert outputs, over simd.h.
#pragma once

namespace nibble::kernels::NIBBLE_ISA {

static void Accumulate(float* sum, const float* x, float weight, int64_t n) {
  const F32 factor = Set(weight);
  ForEachVector(n, [&](int64_t i, auto count) {
    StoreF32(sum + i, Fma(factor, LoadF32(x + i, count), LoadF32(sum + i, count)), count);
  });
}

}  // namespace nibble::kernels::NIBBLE_ISA
