// RMS norm with residual add, and the plain residual add: rows are split among the threads.
#pragma once

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

void RmsNorm(const VectorKernels& kernels, const OpContext& context, const RmsNormParams& params);
void Add(const VectorKernels& kernels, const OpContext& context, const AddParams& params);

}  // namespace nibble::kernels::cpu
