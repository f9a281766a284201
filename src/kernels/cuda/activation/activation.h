// What stands between the linears of a feed-forward block, and the output gate of an attention.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

void ApplyActivation(const OpContext& context, const ActivationParams& params);
void SigmoidGate(const OpContext& context, const SigmoidGateParams& params);

}  // namespace nibble::kernels::cuda
