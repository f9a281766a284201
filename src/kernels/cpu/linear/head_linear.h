// One linear per head: heads and passes of tokens are split among the threads, each a linear of one
// thread. Bits are those of linear.h.
#pragma once

#include "kernels/ops.h"

namespace nibble::kernels::cpu {

size_t HeadLinearWorkspace(int threads, int64_t max_t, int64_t max_k);
void HeadLinear(const OpContext& context, const HeadLinearParams& params);

}  // namespace nibble::kernels::cpu
