// Sampling on the device: what ops.h says, row by row, without ever sorting a vocabulary.
//
// The vocabulary is cut into chunks of kChunk tokens, a CTA each, whatever the number of rows.
// Masses are integers, weight e^((l - max) / T) in units of 2^-39: their sums do not depend on an
// order, so that a row's token depends on the row alone. The steps, each a kernel:
//
//   fetch      what the host says about the rows
//   survey     edits (bias, bans, mask, penalties), best token and sum of exponentials per chunk
//   histogram  counts and masses over 2,048 steps of distance from the best logit
//   collect    the steps in which top-k and top-p cut; ids of these steps' tokens; masses of chunks
//   choose     the exact cut among these ids, the draw: first the chunk, then the token
//   rank       how many raw logits are better than the chosen one
//
// Rows that just take the best token need survey and choose alone.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

size_t SampleWorkspace(int threads, int64_t max_rows, int64_t vocab);

// The results are in the caller's memory, which is Device::AllocateShared's, when the stream has
// passed what this launches.
void Sample(const OpContext& context, const SampleParams& params);

}  // namespace nibble::kernels::cuda
