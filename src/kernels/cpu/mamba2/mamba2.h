// Mamba-2 between its projections, in blocks of tokens: the convolution is divided among threads by
// channels, the recurrence by sequences and heads, gate and norm by tokens.
#pragma once

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

size_t Mamba2Workspace(int threads, const Mamba2Params& sizes);
void Mamba2(const VectorKernels& kernels, const OpContext& context, const Mamba2Params& params);

}  // namespace nibble::kernels::cpu
