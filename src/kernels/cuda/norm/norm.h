// RMS norm of rows, and the additions and roundings between blocks.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// Widest row that RmsNorm takes.
inline constexpr int64_t kMaxNormWidth = 32768;
// Widest row that other kernels norm themselves (normalize.cuh).
inline constexpr int kMaxFusedNormWidth = 8192;

void RmsNorm(const OpContext& context, const RmsNormParams& params);
// out (rows, D), dense = x, rows x_stride apart, normed.
void NormRows(const OpContext& context, const InputNorm& norm, const uint16_t* x, int64_t x_stride,
              int64_t rows, int64_t d, uint16_t* out);
void Add(const OpContext& context, const AddParams& params);
void Round(const OpContext& context, const RoundParams& params);

}  // namespace nibble::kernels::cuda
