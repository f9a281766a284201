// RMS norm with residual add, and the plain residual add and rounding: rows are split among the
// threads.
#pragma once

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

void RmsNorm(const VectorKernels& kernels, const OpContext& context, const RmsNormParams& params);
void Round(const VectorKernels& kernels, const OpContext& context, const RoundParams& params);
void Add(const VectorKernels& kernels, const OpContext& context, const AddParams& params);

}  // namespace nibble::kernels::cpu
