// y = x Wᵀ + bias with both sides in NVFP4, for tokens of prompts on SM 12.x. Contract: linear_w4a4
// in kernels/ops.h. A token's bits depend on that token alone: k-tiles ascend in one chain of MMAs.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// Whether the current GPU multiplies FP4.
bool HasW4a4();
// Or can emulate it, for tests: compute capability 9.0.
bool HasEmulatedW4a4();

// For any m <= max_m, k <= max_k.
size_t LinearW4a4Workspace(int64_t max_m, int64_t max_k);
void LinearW4a4(const OpContext& context, const LinearParams& params);

}  // namespace nibble::kernels::cuda
