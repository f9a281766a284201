// y = x Wᵀ + bias for up to 128 tokens on GPUs with wgmma: bound by the weights' bytes and by what
// x costs to bring to every multiprocessor. Slices along K are multiplied in parallel and added up
// in turn: the order of linear/weight_tiles.h.
#pragma once

#include <vector>

#include "kernels/cuda/prefill/prefill.h"

namespace nibble::kernels::cuda {

inline constexpr int kMaxTurnTokens = 128;

// How a launch is cut. Changes the time, never the bits.
struct TurnPlan {
  int tokens = 0;  // of a CTA, at most: 16, 32, 64 or, of pairs, 128
  int parts = 0;   // CTAs that share a weight's rows, tokens after tokens
  int groups = 0;  // groups of 64 rows that a CTA multiplies side by side
  int row_ctas = 0;
  // CTA b along the rows, or pair, takes share row tiles, the first `larger` one more, at most
  // pass_tiles of them at a time. Pairs have one pass.
  int share = 0;
  int larger = 0;
  int passes = 0;
  int pass_tiles = 0;
  int splits = 1;           // 2: pairs of CTAs, which have the same rows and split K
  double microseconds = 0;  // estimated, with the preparation of tokens
};

// Every plan that can be launched.
std::vector<TurnPlan> TurnPlans(const WeightTiles& weight, int64_t m);
// The fastest known.
TurnPlan BestTurnPlan(const WeightTiles& weight, int64_t m);

// Formats of HasPrefill, tokens prepared in parts of plan.tokens.
void LaunchTurns(const PrefillParams& params, const TurnPlan& plan, void* stream);

}  // namespace nibble::kernels::cuda
