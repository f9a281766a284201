// Linear of up to 64 tokens: weights are streamed once, every warp through a ring of its own.
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/ops.h"

namespace nibble::kernels::cuda {

inline constexpr int kMaxDecodeTokens = 64;

// Handed to the kernel by value. x is what meets the weight: column order and multiplier applied.
struct DecodeArgs {
  WeightTiles weight;
  const uint16_t* x = nullptr;
  int64_t x_stride = 0;
  const float* bias = nullptr;
  uint16_t* y = nullptr;
  float* y_f32 = nullptr;
  int64_t y_stride = 0;
  int m = 0;  // 1..64
};

// How a launch is cut and uses its shared memory. Changes the time, never the bits.
struct DecodePlan {
  int blocks = 0;         // CTAs: one per multiprocessor
  int stages = 0;         // of a warp's ring
  int token_tiles = 0;    // of 8 tokens
  int chunk_slices = 0;   // slices along K whose x lies in shared memory at a time
  int group_tiles = 0;    // row tiles that a CTA takes between reloads of x
  int partial_units = 0;  // slice sums between two reductions, a multiple of the warps
  int x_bytes = 0;
  int run_bytes = 0;    // running sums
  int scale_bytes = 0;  // row scales and bias
  int shared_bytes = 0;
};

// The fastest known; `stages` forces that many where they fit, for benchmarks.
DecodePlan PlanDecode(const WeightTiles& weight, int m, int stages = 0);

// CTAs of a plan that fit a multiprocessor together: two for up to 8 tokens, so that a launch loads
// its first weights while its predecessor finishes.
int DecodeBlocksPerMultiprocessor(const WeightTiles& weight, const DecodePlan& plan);

void LaunchDecode(const DecodeArgs& args, const DecodePlan& plan, void* stream);

}  // namespace nibble::kernels::cuda
