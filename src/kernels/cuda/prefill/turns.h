// y = x Wᵀ + bias for up to 64 tokens on GPUs with wgmma: bound by the weights' bytes, so that
// every multiprocessor has to stream, whatever N is. Slices along K are multiplied in parallel and
// added up in turn: the order of linear/weight_tiles.h.
#pragma once

#include "kernels/cuda/prefill/prefill.h"

namespace nibble::kernels::cuda {

inline constexpr int kMaxTurnTokens = 64;

// About how long it takes with the preparation of tokens, for the choice between kernels.
double TurnMicroseconds(const WeightTiles& weight, int64_t m);

// Formats of HasPrefill, tokens prepared.
void LaunchTurns(const PrefillParams& params, void* stream);

}  // namespace nibble::kernels::cuda
