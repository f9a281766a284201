// Inputs of experts that are not simply rows of x or h: rows times their routing weight, columns in
// another order or times a multiplier (tensor/quant_view.h), or rows whose ends are not aligned.
#pragma once

#include "kernels/cuda/moe/lists.h"
#include "kernels/cuda/moe/prepared_experts.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

enum class Input : uint8_t { kGateUp, kUp, kDown };

// out[p] of every row p, of `stride` columns, zeros from the weight's K on.
struct GatherParams {
  Lists lists;
  int64_t max_groups = 0;
  Input input = Input::kGateUp;
  const uint16_t* from = nullptr;  // (T, D) of kGateUp and kUp, else rows p
  int64_t from_stride = 0;
  int32_t k = 0;                 // of routed experts
  int32_t shared_k = 0;          // of the shared one
  bool scale_by_weight = false;  // routed rows first become bf16(weight * row)
  int32_t experts = 0;
  const ExpertTransforms* transforms = nullptr;  // (E), or null
  ExpertTransforms shared_transforms;
  uint16_t* out = nullptr;
  int64_t stride = 0;
};

void Gather(const OpContext& context, const GatherParams& params);

}  // namespace nibble::kernels::cuda::moe
