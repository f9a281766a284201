// The experts' arithmetic for one token, as in few_tokens.h, but with nothing to group: every
// chosen expert is one row of h, in the order of its rank among the chosen. The code is short: at
// one token, what stands between the loads decides the time.
#pragma once

#include "kernels/cuda/moe/few_tokens.h"

namespace nibble::kernels::cuda::moe {

inline constexpr int kOneThreads = 512;
inline constexpr int kOneExperts = kOneThreads;
inline constexpr int kOneTopK = 32;

// Whether FewTakes these, too, and they are one token's, of experts that are all held.
bool OneTakes(const FewParams& params, const FewSets& sets);
bool OneDownFits(const FewParams& params, const FewSets& sets);

void OneGateUp(const OpContext& context, const FewParams& params, const FewSets& sets);
void OneDown(const OpContext& context, const FewParams& params, const FewSets& sets);

}  // namespace nibble::kernels::cuda::moe
