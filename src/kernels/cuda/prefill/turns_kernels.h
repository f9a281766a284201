// The instances of turns.cuh, one file per format.
#pragma once

#include "kernels/cuda/prefill/turns.h"

namespace nibble::kernels::cuda {

// Warpgroups that take the slices of each of `groups` row groups in turn; 0: there is no such
// kernel. Codes wider than a byte take the room of two warps.
constexpr int TurnsOf(TileFormat format, int tokens, int groups) {
  if (tokens == 128) return 0;
  if (CodeBytes(format) > 1024) return groups == 1 ? 2 : groups == 2 ? 1 : 0;
  if (groups == 1) return tokens == 64 ? 3 : 4;
  return groups == 2 ? 2 : groups == 4 ? 1 : 0;
}

// Warpgroups of each CTA of a pair (turn_pairs.cuh), of 4-bit weights alone; 0: there is no such
// kernel.
constexpr int PairTurnsOf(TileFormat format, int tokens) {
  return CodeBytes(format) > 512 ? 0 : tokens == 128 ? 2 : tokens == 64 ? 3 : 4;
}

// CTAs that may share a weight's rows and split K.
constexpr int MostSplits(TileFormat format, int tokens, int groups) {
  return groups == 1 && PairTurnsOf(format, tokens) > 0 ? 2 : 1;
}

void LaunchNvfp4Turns(const PrefillParams& params, const TurnPlan& plan, void* stream);
void LaunchMxfp4Turns(const PrefillParams& params, const TurnPlan& plan, void* stream);
void LaunchBf16Turns(const PrefillParams& params, const TurnPlan& plan, void* stream);
void LaunchFp8Turns(const PrefillParams& params, const TurnPlan& plan, void* stream);
void LaunchMxfp8Turns(const PrefillParams& params, const TurnPlan& plan, void* stream);

}  // namespace nibble::kernels::cuda
