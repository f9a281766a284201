// Gated DeltaNet on CUDA. Tokens in chunks first (chunks.h). The others are computed by the
// recurrence in the same order, by two routes with the same bits: one kernel for steps of few
// tokens per sequence (a cluster of CTAs per key head and sequence), three for many (convolutions
// of all tokens, recurrence with the state in registers, gated norm).
//
// The kernel for few tokens reads slots, q_start, kv_len and the states before it waits for its
// predecessor: those arrays are written before the step's kernels, not by one of them, unless there
// are chunks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// OpTable.delta_chunk of this GPU.
int32_t GatedDeltaNetChunk();

size_t GatedDeltaNetWorkspace(int threads, const GatedDeltaNetParams& sizes);
void GatedDeltaNet(const OpContext& context, const GatedDeltaNetParams& params);

}  // namespace nibble::kernels::cuda
