// RMS norm with residual add, and the plain residual add and rounding: rows are split among the
// threads.
#pragma once

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

void RmsNorm(const VectorKernels& kernels, const OpContext& context, const RmsNormParams& params);
// out (rows, D), dense = x normed.
void NormRows(const VectorKernels& kernels, const OpContext& context, const InputNorm& norm,
              const uint16_t* x, int64_t x_stride, int64_t rows, int64_t d, uint16_t* out);
void Round(const VectorKernels& kernels, const OpContext& context, const RoundParams& params);
void Add(const VectorKernels& kernels, const OpContext& context, const AddParams& params);

}  // namespace nibble::kernels::cpu
