#include "kernels/cpu/activation/activation.h"

#include "kernels/cpu/parallel.h"

namespace nibble::kernels::cpu {
namespace {

constexpr int64_t kGrainElements = 8192;

}  // namespace

void Activate(const VectorKernels& kernels, const OpContext& context, const ActivationParams& p) {
  ForEachRange(context, p.t, kGrainElements / p.f + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const uint16_t* gate = p.gate_up + t * p.activation.inputs(p.f);
      const uint16_t* up = p.activation.gated() ? gate + p.f : gate;
      kernels.activate(p.activation, gate, up, p.f, p.out + t * p.f);
    }
  });
}

void SigmoidGate(const VectorKernels& kernels, const OpContext& context,
                 const SigmoidGateParams& p) {
  ForEachRange(context, p.t, kGrainElements / p.n + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      kernels.sigmoid_gate(p.x + t * p.n, p.gate + t * p.gate_stride, p.n);
  });
}

}  // namespace nibble::kernels::cpu
