// y = x Wᵀ and the embedding gather over packed weights: prepares activations once, then lets the
// weight's kernels run over ranges of panels, one contiguous range per thread.
//
// Bits of a (token, row) depend on neither M, the number of threads nor the row's place in a stack.
#pragma once

#include "kernels/cpu/linear/linear_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

Result<std::unique_ptr<PackedWeight>> PackWeight(const PackParams& params,
                                                 const LinearKernels& kernels);
size_t LinearWorkspace(int64_t max_m, int64_t max_k);
void Linear(const OpContext& context, const LinearParams& params);
void Embed(const OpContext& context, const EmbedParams& params);

}  // namespace nibble::kernels::cpu
