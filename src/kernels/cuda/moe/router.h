// Router logits of few tokens, and the logit of the shared expert's gate, by one launch: whole rows
// of E outputs are few, so a block sums 16 of them over all of K. Every block norms x itself.
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

struct RouterParams {
  const uint16_t* router_x = nullptr;  // (T, K of router)
  int64_t router_stride = 0;
  WeightTiles router;           // (E, K)
  const float* bias = nullptr;  // (E) or null
  float* logits = nullptr;      // (T, E)
  const uint16_t* x = nullptr;  // (T, D)
  int64_t x_stride = 0;
  float* gate_logits = nullptr;  // (T)
  // Of x, which router and gate both see: then router_x is x. The weight is 16-byte aligned.
  InputNorm norm;
  uint16_t* normed =
      nullptr;  // (T, D): x, normed, for those who come later; or null: OneRouterTakes
  int64_t t = 0;
  bool before_few = false;  // FewGateUp follows
  // What follows may start before the wait of one token's kernel: a large launch, whose first steps
  // need no room beside this one.
  bool before_weights = false;
  // Last: most blocks read nothing of it, and what they read late is in lines of the cache of
  // constants that they have read before.
  WeightTiles gate;  // (1, D); data null: none
};

// Above it the linear op is faster.
inline constexpr int64_t kMaxRouterTokens = 1024;

// Whether format, shape and alignment are those that Router knows; else the linear op does.
bool RouterTakes(const RouterParams& params);
// Also whether it is the kernel for one token and its norm, which needs no `normed`.
bool OneRouterTakes(const RouterParams& params);
void Router(const OpContext& context, const RouterParams& params);

}  // namespace nibble::kernels::cuda::moe
