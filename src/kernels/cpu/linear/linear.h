// y = x Wᵀ and the embedding gather over packed weights: prepares activations once, then lets the
// weight's kernels run over ranges of panels, one contiguous range per thread. Without a pool a
// linear runs on the caller.
//
// Bits of a (token, row) depend on neither M, the number of threads nor the row's place in a stack.
#pragma once

#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"
#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

Result<std::unique_ptr<PackedWeight>> PackWeight(const PackParams& params,
                                                 const LinearKernels& kernels);
size_t LinearWorkspace(int64_t max_m, int64_t max_k);
// params.norm: none.
void Linear(const OpContext& context, const LinearParams& params);
void NormedLinear(const VectorKernels& kernels, const OpContext& context,
                  const LinearParams& params);

// For ops that have several linears at once and spread them over threads themselves: the rows of
// panels [begin, end) of the weight (kPanelRows each, fewer in the last), by the calling thread
// alone. y is (M, rows) and starts with panel begin's first row; bias is that of all rows. The bits
// are Linear's.
int64_t LinearPanels(const PackedWeight& weight);
void LinearOfPanels(const OpContext& context, const LinearParams& params, int64_t begin,
                    int64_t end);

void Embed(const OpContext& context, const EmbedParams& params);

}  // namespace nibble::kernels::cpu
