// Tells a MoeListener what the linears of experts saw, from what a finished chain of launches left
// in the workspace. Waits for the stream: for calibration alone.
#pragma once

#include "kernels/cuda/moe/lists.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

struct ListenParams {
  MoeListener* listener = nullptr;
  Lists lists;
  int32_t experts = 0;
  int64_t t = 0;
  const uint16_t* x = nullptr;  // (T, D)
  int64_t d = 0;
  bool weight_on_input = false;
  const uint16_t* h = nullptr;  // (rows)
  int64_t h_stride = 0;
  int64_t f = 0;
  int64_t shared_f = 0;
};

void TellListener(const OpContext& context, const ListenParams& params);

}  // namespace nibble::kernels::cuda::moe
