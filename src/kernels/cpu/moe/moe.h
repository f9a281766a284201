// A mixture of experts: router, experts, shared expert and sum.
//
// Tokens are grouped by expert, so that every expert's weights are read once for all its tokens.
// The input linears of all experts are cut into pieces of rows that threads take as they become
// free; then the columns of the output are cut in the same way, and the thread that has some of
// them walks the experts in ascending order and sums. So a decode step costs three waits for the
// pool, however many experts it uses, and no bit depends on how pieces meet threads.
#pragma once

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

size_t MoeWorkspace(int threads, const MoeSizes& sizes);
void Moe(const VectorKernels& kernels, const OpContext& context, const MoeParams& params);

}  // namespace nibble::kernels::cpu
