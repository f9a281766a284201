// RMS norm of rows, and the additions and roundings between blocks.
#pragma once

#include "kernels/ops.h"

namespace nibble::kernels::cuda {

// Widest row that RmsNorm takes.
inline constexpr int64_t kMaxNormWidth = 32768;

void RmsNorm(const OpContext& context, const RmsNormParams& params);
void Add(const OpContext& context, const AddParams& params);
void Round(const OpContext& context, const RoundParams& params);

}  // namespace nibble::kernels::cuda
