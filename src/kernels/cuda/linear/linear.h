// The ops of dense weights: linear, one linear per head, embedding. Contract: kernels/ops.h.
#pragma once

#include <memory>

#include "base/error.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/linear_pair.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// On the current GPU.
Result<std::unique_ptr<PackedWeight>> PackWeight(const PackParams& params);

size_t LinearWorkspace(int64_t max_m, int64_t max_k);
void Linear(const OpContext& context, const LinearParams& params);
ActivationLayout XLayout(const PackedWeight& weight, int64_t m);
void LinearPair(const OpContext& context, const LinearPairParams& params);
// Of FP8 and W4A4 linears, too.
size_t ActivatedWorkspace(int64_t max_m, int64_t f);

void Embed(const OpContext& context, const EmbedParams& params);

Result<std::unique_ptr<PreparedWeights>> PrepareHeads(std::span<const PackedWeight* const> weights);
size_t HeadLinearWorkspace(int threads, int64_t max_t, int64_t k);
void HeadLinear(const OpContext& context, const HeadLinearParams& params);

}  // namespace nibble::kernels::cuda
