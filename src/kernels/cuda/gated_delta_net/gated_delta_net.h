// Gated DeltaNet on CUDA. Every token is computed by the same recurrence in the same order, by two
// routes with the same bits: one kernel for steps of few tokens per sequence (a cluster of CTAs per
// key head and sequence), three for prompts (convolutions of all tokens, recurrence with the state
// in registers, gated norm).
//
// The kernel for few tokens reads slots, q_start, kv_len and the states before it waits for its
// predecessor: those arrays are written before the step's kernels, not by one of them.
#pragma once

#include <cstddef>

#include "kernels/ops.h"

namespace nibble::kernels::cuda {

size_t GatedDeltaNetWorkspace(int threads, const GatedDeltaNetParams& sizes);
void GatedDeltaNet(const OpContext& context, const GatedDeltaNetParams& params);

}  // namespace nibble::kernels::cuda
