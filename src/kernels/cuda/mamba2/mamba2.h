// Mamba-2 on CUDA. Every token is computed by the same recurrence in the same order, by two routes
// with the same bits: one kernel for steps of few tokens per sequence (a cluster of CTAs per group
// and sequence), three for prompts (convolutions of all tokens, recurrence with the state in
// registers, gated norm).
//
// The kernel for few tokens reads slots, q_start, kv_len and the states before it waits for its
// predecessor: those arrays are written before the step's kernels, not by one of them.
#pragma once

#include <cstddef>

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

size_t Mamba2Workspace(int threads, const Mamba2Params& sizes);
void Mamba2(const OpContext& context, const Mamba2Params& params);

}  // namespace nibble::kernels::cuda
