// Prompts of Gated DeltaNet by whole chunks of 64 tokens, on tensor cores. Yang et al. 2024,
// section 3.3, with the sums arranged so that as many operands as possible are exact in BF16:
//
//   k, q  raw outputs of the convolution (BF16); what makes them unit vectors goes into factors
//   A_ij  = β_i e^(G_i - G_j) (k_i·k_j) below the diagonal,  M = (I + A)^-1
//   P_ij  = e^(G_i - G_j) (q_i·k_j) up to the diagonal
//   R     = β (V - e^G K Sᵀ),  Δ = M R,  O = e^G Q Sᵀ + P Δ,  S ← e^(G_last) S + (e^(G_last - G)
//   Δ)ᵀ K
//
// S, R, Δ, M and P are FP32. Where one of them is multiplied it is split into two BF16, hi + lo,
// which keep 16 bits of it: products with K and Q take both, products of two such take three of the
// four. Decays are products of e^g, never differences of large sums.
//
// All chunks' k, q, v, M and P are computed side by side; then a CTA per 32 rows of a state goes
// through the chunks. A chunk's bits depend on its tokens and on the state before it alone.
#pragma once

#include <cstddef>

#include "kernels/cuda/recurrent/causal_conv.cuh"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// Whether this GPU has the shared memory.
bool HasDeltaChunks();

// Whether params.chunks are taken as chunks; else they are tokens like others.
bool TakesDeltaChunks(const GatedDeltaNetParams& params);

size_t DeltaChunksWorkspace(const GatedDeltaNetParams& sizes);

// The chunks of params: outputs and states; the convolution's windows then hold the inputs before
// each sequence's first token that follows.
void RunDeltaChunks(const OpContext& context, const GatedDeltaNetParams& params,
                    const CausalConv& conv);

}  // namespace nibble::kernels::cuda
