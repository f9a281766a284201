// SwiGLU over simd.h.
#pragma once

namespace nibble::kernels::NIBBLE_ISA {

// x * sigmoid(x), with the exponential of a non-positive number on both sides of zero.
NIBBLE_SIMD F32 Silu(F32 x) {
  const Mask negative = Less(x, Set(0.0f));
  const F32 e = ExpOfNonPositive(Select(negative, x, Sub(Set(0.0f), x)));
  const F32 numerator = Select(negative, Mul(x, e), x);
  return Div(numerator, Add(Set(1.0f), e));
}

static void SwiGlu(const uint16_t* gate, const uint16_t* up, int64_t f, uint16_t* out) {
  ForEachVector(f, [&](int64_t i, auto count) {
    const F32 silu = RoundToBf16(Silu(LoadBf16(gate + i, count)));
    StoreBf16(out + i, Mul(silu, LoadBf16(up + i, count)), count);
  });
}

}  // namespace nibble::kernels::NIBBLE_ISA
