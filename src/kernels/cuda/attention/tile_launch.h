// Attention of whatever is no decode step of step_launch.h: tiles of query rows, by cache format.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

struct AttentionProblem;

// q is rotated, and the step's own keys and values are in the cache. `max_keys`: of a sequence, by
// the width of the page table.
void LaunchTilesBf16(const OpContext& context, const AttentionProblem& problem, int64_t tokens,
                     int64_t max_keys);
void LaunchTilesFp8(const OpContext& context, const AttentionProblem& problem, int64_t tokens,
                    int64_t max_keys);
void LaunchTilesNvfp4(const OpContext& context, const AttentionProblem& problem, int64_t tokens,
                      int64_t max_keys);

// What several CTAs left of tiles becomes rows of the output.
void LaunchMerge(const OpContext& context, const AttentionProblem& problem, int64_t tokens);

}  // namespace nibble::kernels::cuda
