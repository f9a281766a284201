// y = x Wᵀ + bias with both sides in E4M3, on GPUs with wgmma (compute capability 9.0). Contract:
// linear_fp8 in kernels/ops.h. A token's bits depend on that token alone: of every 128 columns one
// chain of MMAs from zero, these sums added in FP32, ascending.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// Whether the current GPU has the kernels.
bool HasFp8();

// For any m <= max_m, k <= max_k.
size_t LinearFp8Workspace(int64_t max_m, int64_t max_k);
// params.weight is a CudaWeight with fp8().group > 0.
void LinearFp8(const OpContext& context, const LinearParams& params);

}  // namespace nibble::kernels::cuda
