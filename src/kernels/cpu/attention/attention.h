// Attention over paged KV: the plan that spreads query tiles, or single chunks of keys, over the
// threads. The arithmetic is attention_chunk.h's, the same whatever the plan.
#pragma once

#include <cstddef>

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

size_t AttentionWorkspace(int threads, int64_t max_t, int32_t q_heads, int32_t head_dim);
void Attention(const VectorKernels& kernels, const OpContext& context,
               const AttentionParams& params);

}  // namespace nibble::kernels::cpu
