// y = x Wᵀ + bias for many tokens on GPUs with wgmma (compute capability 9.0): the bits of the
// kernels for few tokens, at the tensor cores' rate.
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/cuda/prefill/tokens.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// Whether this GPU has the kernels, and they take the weight: not where scales change within a
// k-tile.
bool HasPrefill(const WeightTiles& weight);
// And those of turns.h for up to kMaxTurnTokens tokens.
bool HasTurns(TileFormat format);
// Whether these multiply M tokens, or tiles.
bool TakesTurns(const WeightTiles& weight, int64_t m);

// For any m <= max_m, k <= max_k.
size_t PrefillWorkspace(int64_t max_m, int64_t max_k);

// params.weight is a CudaWeight with HasPrefill(its tiles). Layouts other than rows: of turns.
void Prefill(const OpContext& context, const LinearParams& params);

struct PrefillParams {
  WeightTiles weight;
  PreparedTokens x;
  const float* bias = nullptr;
  uint16_t* y = nullptr;
  float* y_f32 = nullptr;
  int64_t y_stride = 0;
  bool add = false;        // to y
  bool activates = false;  // rows are paired, y holds N / 2 outputs of `activation`
  Activation activation;
  ActivationLayout y_layout;  // not rows: with `activates`, in turns
  int64_t m = 0;
};

// With the tokens already prepared. `shape` in [0, PrefillShapes(format)) forces a kernel, for
// tests and benchmarks; -1: the best.
void LaunchPrefill(const PrefillParams& params, void* stream, int shape = -1);
int PrefillShapes(TileFormat format);

}  // namespace nibble::kernels::cuda
