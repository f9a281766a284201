// The decode step's kernels behind the attention op.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

struct AttentionProblem;

// Whether the step kernel takes the call: one token per sequence, with its rotation, of head
// dimensions that have a kernel and up to eight query heads to a KV head.
bool StepTakes(const AttentionParams& params);

// Rotation, cache write, attention and gate. `problem`: of the same call.
void LaunchStepBf16(const OpContext& context, const AttentionParams& params,
                    const AttentionProblem& problem);
void LaunchStepFp8(const OpContext& context, const AttentionParams& params,
                   const AttentionProblem& problem);
void LaunchStepNvfp4(const OpContext& context, const AttentionParams& params,
                     const AttentionProblem& problem);

}  // namespace nibble::kernels::cuda
