// A linear with an activation where a backend does not fuse them: one after the other.
#pragma once

#include "base/check.h"
#include "kernels/op_params.h"
#include "kernels/workspace.h"

namespace nibble::kernels {

// Of gate and up, (M, 2F) BF16, in the workspace.
inline size_t GateUpBytes(int64_t m, int64_t f) { return Bf16RowsBytes(m, 2 * f); }

// linear(context, params without the activation), then activate(context, ActivationParams). Gate
// and up lie at the start of the workspace, what follows is the linear's.
template <typename Linear, typename Activate>
void LinearThenActivation(const OpContext& context, const LinearParams& params,
                          const Linear& linear, const Activate& activate) {
  const int64_t n = params.weight->n();
  const size_t bytes = GateUpBytes(params.m, n / 2);
  NIBBLE_CHECK(bytes <= context.workspace_bytes,
               "gate and up of {} tokens, {} wide: workspace of {} bytes", params.m, n,
               context.workspace_bytes);
  auto* const gate_up = reinterpret_cast<uint16_t*>(context.workspace);
  LinearParams product = params;
  product.activation = nullptr;
  product.y = gate_up;
  product.y_stride = n;
  linear(Behind(context, bytes), product);
  activate(context, ActivationParams{.gate_up = gate_up,
                                     .out = params.y,
                                     .t = params.m,
                                     .f = n / 2,
                                     .activation = *params.activation});
}

}  // namespace nibble::kernels
