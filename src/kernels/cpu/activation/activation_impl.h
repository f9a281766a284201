// What stands between the linears of a feed-forward block, over simd.h.
#pragma once

namespace nibble::kernels::NIBBLE_ISA {

// 1 / (1 + e^-x), times `numerator`, with the exponential of a non-positive number on both sides of
// zero.
NIBBLE_SIMD F32 TimesSigmoid(F32 numerator, F32 x) {
  const Mask negative = Less(x, Set(0.0f));
  const F32 e = ExpOfNonPositive(Select(negative, x, Sub(Set(0.0f), x)));
  return Div(Select(negative, Mul(numerator, e), numerator), Add(Set(1.0f), e));
}

NIBBLE_SIMD F32 Silu(F32 x) { return TimesSigmoid(x, x); }

// 0.5 x (1 + tanh(y)) = x * sigmoid(2 y).
NIBBLE_SIMD F32 GeluTanh(F32 x) {
  constexpr float kTwoSqrt2OverPi = 1.5957691216f;
  const F32 cubic = Mul(Mul(Mul(x, x), x), Set(0.044715f));
  return TimesSigmoid(x, Mul(Set(kTwoSqrt2OverPi), Add(x, cubic)));
}

NIBBLE_SIMD F32 ClampedSilu(const Activation& activation, F32 gate, F32 up) {
  const F32 limit = Set(activation.limit);
  const F32 g = Min(gate, limit);
  const F32 u = Max(Min(up, limit), Set(-activation.limit));
  return TimesSigmoid(Mul(Add(u, Set(1.0f)), g), Mul(Set(activation.alpha), g));
}

static void Activate(const Activation& activation, const uint16_t* gate, const uint16_t* up,
                     int64_t f, uint16_t* out) {
  const auto each = [&](auto function) {
    ForEachVector(f, [&](int64_t i, auto count) {
      StoreBf16(out + i, function(LoadBf16(gate + i, count), LoadBf16(up + i, count)), count);
    });
  };
  switch (activation.kind) {
    case ActivationKind::kSilu:
      return each([](F32 g, F32 u) { return Mul(RoundToBf16(Silu(g)), u); });
    case ActivationKind::kGeluTanh:
      return each([](F32 g, F32 u) { return Mul(RoundToBf16(GeluTanh(g)), u); });
    case ActivationKind::kClampedSilu:
      return each([&](F32 g, F32 u) { return ClampedSilu(activation, g, u); });
    case ActivationKind::kSquaredRelu:
      return each([](F32 g, F32) {
        const F32 positive = Max(g, Set(0.0f));
        return Mul(positive, positive);
      });
  }
}

static void SigmoidGate(uint16_t* x, const uint16_t* gate, int64_t n) {
  ForEachVector(n, [&](int64_t i, auto count) {
    StoreBf16(x + i, TimesSigmoid(LoadBf16(x + i, count), LoadBf16(gate + i, count)), count);
  });
}

}  // namespace nibble::kernels::NIBBLE_ISA
