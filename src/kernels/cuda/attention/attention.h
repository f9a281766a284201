// Attention over paged KV on the GPU. The one order in which every kernel sums is
// attention_order.cuh's; which kernel computes a token, and how keys are split over CTAs, follows
// from host-known sizes alone and never shows in the result.
#pragma once

#include <cstddef>

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// Largest head dimension for which shared memory suffices in any KV format.
int32_t MaxHeadDim();

// Bounded by 64 MiB whatever the contexts.
size_t AttentionWorkspace(int threads, int64_t max_t, int32_t q_heads, int32_t head_dim);
void Attention(const OpContext& context, const AttentionParams& params);

}  // namespace nibble::kernels::cuda
