// The experts' arithmetic for many rows per expert, on GPUs with wgmma: grouped products over the
// tiles of prefill/tile_product.cuh, in place of GateUp and Down and with their bits.
//
//   x permuted -> FC1 -> gate_up (rows, 2F or F) -> activation -> h, permuted rows -> FC2 -> y
//
// in FP32 for some columns of D at a time, whose sums over a token's places follow at once.
#pragma once

#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/lists.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

// Up to `tile` rows of one expert: what a tile of either product needs.
struct alignas(64) RowBlock {
  const std::byte* weight[2];  // FC1's, FC2's row tile 0
  const float* row_scales[2];
  const float* bias[2];
  int32_t first_row;
  int32_t rows;
};

struct GroupedParams {
  Lists lists;
  const Expert* experts = nullptr;  // (E), on the device
  Expert shared;
  WeightTiles shared_gate_up, shared_down;
  int32_t expert_count = 0;  // E
  int32_t top_k = 0;
  int64_t t = 0;
  const uint16_t* x = nullptr;  // (T, D)
  int64_t d = 0;
  int64_t f = 0;
  int64_t shared_f = 0;  // 0: none
  Activation activation;
  WeightSet gate_up, down;  // of routed experts
  uint16_t* out = nullptr;  // (T, D), or
  float* out_f32 = nullptr;
  bool add = false;       // to out
  uint16_t* h = nullptr;  // (rows, the larger F up to a multiple of 64)
  int64_t h_stride = 0;
  std::byte* workspace = nullptr;  // GroupedWorkspace, 64-byte aligned
  int64_t workspace_bytes = 0;
};

struct GroupedSizes {
  int64_t t = 0;
  int64_t d = 0;
  int64_t f = 0;  // the larger of expert and shared expert
  int32_t experts = 0;
  int32_t top_k = 0;
};

// Whether these experts can go this way: equal shapes, one format that has kernels, gate and up
// stacked; and whether there are rows enough for it to be faster.
bool GroupedTakes(const GroupedParams& params);

int64_t GroupedWorkspace(const GroupedSizes& sizes);

// After Route: h, in a permuted form of its own; then out.
void GroupedHidden(const OpContext& context, const GroupedParams& params);
void GroupedOutput(const OpContext& context, const GroupedParams& params);

}  // namespace nibble::kernels::cuda::moe
