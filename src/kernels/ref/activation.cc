#include <cmath>

#include "kernels/ref/ref.h"
#include "numerics/bf16.h"

namespace nibble::kernels::ref {

void SwiGlu(const OpContext&, const SwiGluParams& p) {
  for (int64_t t = 0; t < p.t; ++t) {
    const uint16_t* gate = p.gate_up + t * 2 * p.f;
    const uint16_t* up = gate + p.f;
    for (int64_t i = 0; i < p.f; ++i) {
      const double g = Bf16ToFloat(gate[i]);
      const float silu = RoundToBf16(static_cast<float>(g / (1.0 + std::exp(-g))));
      p.out[t * p.f + i] = Bf16FromFloat(silu * Bf16ToFloat(up[i]));
    }
  }
}

}  // namespace nibble::kernels::ref
