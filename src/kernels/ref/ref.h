// The reference backend: every op as a few obvious scalar loops, the oracle of parity_test.cc.
//
// Values are rounded to BF16 exactly where ops.h says so; sums run in double, so that the oracle's
// own rounding error stays far below what it judges. Single-threaded, stateless, without a
// workspace but for a linear's activation.
#pragma once

#include <vector>

#include "kernels/ops.h"

namespace nibble::kernels::ref {

// Keeps a copy of the stored weight. The activation format is int8 only for NVFP4 and MXFP4, as in
// every backend.
Result<std::unique_ptr<PackedWeight>> PackWeight(const PackParams& params);
void Linear(const OpContext&, const LinearParams& params);
void LinearW4a4(const OpContext&, const LinearParams& params);
void LinearFp8(const OpContext&, const LinearParams& params);
void HeadLinear(const OpContext&, const HeadLinearParams& params);
void Embed(const OpContext&, const EmbedParams& params);
void RmsNorm(const OpContext&, const RmsNormParams& params);
void Add(const OpContext&, const AddParams& params);
void Round(const OpContext&, const RoundParams& params);
void GatherRows(const OpContext&, const GatherRowsParams& params);
void Activation(const OpContext&, const ActivationParams& params);
void SigmoidGate(const OpContext&, const SigmoidGateParams& params);
void Moe(const OpContext&, const MoeParams& params);
void RopeAndCache(const OpContext&, const RopeAndCacheParams& params);
void MlaRopeAndCache(const OpContext&, const MlaRopeAndCacheParams& params);
void Attention(const OpContext&, const AttentionParams& params);
void GatedDeltaNet(const OpContext&, const GatedDeltaNetParams& params);
void Mamba2(const OpContext&, const Mamba2Params& params);
void Sample(const OpContext&, const SampleParams& params);

// One token of one head of the gated delta rule: with S' = decay S and d = beta (v - S' k), the
// state S (Dv, Dk) becomes S' + d kᵀ, and o (Dv) is what q (Dk) reads from it.
void GatedDeltaStep(const double* q, const double* k, const double* v, double decay, double beta,
                    int64_t v_dim, int64_t k_dim, float* state, double* o);

// `count` tokens of one head at once: q, k (count, Dk), v, o (count, Dv), decay, beta (count). The
// same as so many steps, but for rounding. Source: Yang et al. 2024, section 3.3.
void GatedDeltaChunk(const double* q, const double* k, const double* v, const double* decay,
                     const double* beta, int64_t count, int64_t v_dim, int64_t k_dim, float* state,
                     double* o);

// x (Dh or D) normalised and scaled as `style` says; shared by the residual norm and the q/k norm.
void NormalizeRow(const uint16_t* x, const float* weight, int64_t d, float eps, NormStyle style,
                  uint16_t* out);

// x (D) as an op sees it: normed if there is a norm.
std::vector<uint16_t> NormedRow(const InputNorm& norm, const uint16_t* x, int64_t d);

// y = result or, with add, y += result.
void StoreOutput(float result, bool add, uint16_t* y);

// One output of an activation, before its rounding to BF16; up is ignored where there is no gate.
float Activate(const kernels::Activation& activation, float gate, float up);

}  // namespace nibble::kernels::ref
