#include <algorithm>
#include <cmath>

#include "kernels/ref/ref.h"
#include "kernels/ref/scalar_functions.h"
#include "numerics/bf16.h"

namespace nibble::kernels::ref {
namespace {

// 0.5 x (1 + tanh(y)) = x σ(2 y), which does not cancel.
double GeluTanh(double x) {
  constexpr double kTwoSqrt2OverPi = 1.59576912160573071176;
  return x * Sigmoid(kTwoSqrt2OverPi * (x + 0.044715 * x * x * x));
}

}  // namespace

float Activate(const kernels::Activation& activation, float gate, float up) {
  switch (activation.kind) {
    case ActivationKind::kSilu:
      return RoundToBf16(static_cast<float>(gate * Sigmoid(gate))) * up;
    case ActivationKind::kGeluTanh:
      return RoundToBf16(static_cast<float>(GeluTanh(gate))) * up;
    case ActivationKind::kClampedSilu: {
      const double g = std::min(gate, activation.limit);
      const double u = std::clamp(up, -activation.limit, activation.limit);
      return static_cast<float>((u + 1.0) * g * Sigmoid(activation.alpha * g));
    }
    case ActivationKind::kSquaredRelu:
      return std::max(gate, 0.0f) * std::max(gate, 0.0f);
  }
  return 0.0f;
}

void Activation(const OpContext&, const ActivationParams& p) {
  for (int64_t t = 0; t < p.t; ++t) {
    const uint16_t* gate = p.gate_up + t * p.activation.inputs(p.f);
    const uint16_t* up = p.activation.gated() ? gate + p.f : gate;
    for (int64_t i = 0; i < p.f; ++i) {
      p.out[t * p.f + i] =
          Bf16FromFloat(Activate(p.activation, Bf16ToFloat(gate[i]), Bf16ToFloat(up[i])));
    }
  }
}

void SigmoidGate(const OpContext&, const SigmoidGateParams& p) {
  for (int64_t t = 0; t < p.t; ++t) {
    for (int64_t i = 0; i < p.n; ++i) {
      uint16_t& x = p.x[t * p.n + i];
      const double gate = Sigmoid(Bf16ToFloat(p.gate[t * p.gate_stride + i]));
      x = Bf16FromFloat(static_cast<float>(Bf16ToFloat(x) * gate));
    }
  }
}

}  // namespace nibble::kernels::ref
