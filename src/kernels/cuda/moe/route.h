// From router logits to lists: which experts every token goes to, with which weights, and per
// expert its rows (lists.h). Semantics of the choice: Routing in kernels/op_params.h.
#pragma once

#include "kernels/cuda/moe/lists.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

struct RouteParams {
  const float* logits = nullptr;         // (T, E)
  const float* shared_logits = nullptr;  // (T) or null: weight 1
  int64_t t = 0;
  Routing routing;
  bool weight_on_input = false;     // then places carry weight 1
  const Expert* experts = nullptr;  // (E)
  const uint8_t* held = nullptr;    // (E): 0 or 1
  Expert shared;                    // gate.data null: none
  int32_t f = 0;
  int32_t shared_f = 0;
  Split gate_up;
  Split down;
  int32_t group_rows = 8;  // a multiple of 8, at most kColumnsOfGroup
  Lists lists;
  // Of more tokens than one block routes:
  int32_t* chosen = nullptr;       // (T, top_k)
  float* chosen_weight = nullptr;  // (T, top_k)
};

// Tokens that one block routes, a warp for each.
inline constexpr int kOneBlockTokens = 16;

// The most groups that t tokens can make.
int64_t MaxGroups(int64_t t, int32_t experts, int32_t top_k, bool shared, int32_t group_rows);

void Route(const OpContext& context, const RouteParams& params);
// Only chosen and chosen_weight, for kernels that find the rest by themselves.
void ChooseForTokens(const OpContext& context, const RouteParams& params);

}  // namespace nibble::kernels::cuda::moe
