#include "kernels/cpu/activation/activation.h"

#include "kernels/cpu/parallel.h"

namespace nibble::kernels::cpu {

void SwiGlu(const VectorKernels& kernels, const OpContext& context, const SwiGluParams& p) {
  constexpr int64_t kGrainElements = 8192;
  ForEachRange(context, p.t, kGrainElements / p.f + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const uint16_t* gate = p.gate_up + t * 2 * p.f;
      kernels.swiglu(gate, gate + p.f, p.f, p.out + t * p.f);
    }
  });
}

}  // namespace nibble::kernels::cpu
