// Activations and gates: rows are split among the threads.
#pragma once

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

void Activate(const VectorKernels& kernels, const OpContext& context,
              const ActivationParams& params);
void SigmoidGate(const VectorKernels& kernels, const OpContext& context,
                 const SigmoidGateParams& params);

}  // namespace nibble::kernels::cpu
