// Routed experts with both sides in NVFP4, for tokens of prompts: MoeParams.w4a4 of op_params.h.
//
//   x -> rows in NVFP4, by the expert's scale -> FC1 -> gate_up (rows, 2F or F)
//     -> activation, rows in NVFP4 -> FC2 -> y (rows, D)
//
// Rows and groups are those of moe/lists.h, with groups of kColumnsOfGroup rows; the shared
// expert's are left alone. A row's bits depend on that row alone.
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/cuda/moe/lists.h"
#include "kernels/cuda/moe/prepared_experts.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::w4a4 {

struct ExpertsParams {
  moe::Lists lists;
  int64_t max_groups = 0;
  const float* input_scales = nullptr;                // (E, 2): of gate_up, of down
  const moe::ExpertTransforms* transforms = nullptr;  // (E) or null
  WeightTiles gate_up, down;                          // sizes of every expert's
  const uint16_t* x = nullptr;                        // (T, D)
  int32_t d = 0;
  int32_t f = 0;
  Activation activation;
  bool scale_by_weight = false;  // x times the routing weight first
  uint16_t* hidden = nullptr;    // (rows, 2F or F): scratch
  float* y = nullptr;            // (rows, D)
  std::byte* pieces = nullptr;   // ExpertTokenBytes, 16-byte aligned: scratch
};

size_t ExpertTokenBytes(int64_t max_groups, int64_t max_k);

// After Route: y of the routed rows.
void RunExperts(const OpContext& context, const ExpertsParams& params);

}  // namespace nibble::kernels::cuda::w4a4
