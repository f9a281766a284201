#include "kernels/cpu/linear/head_linear.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/linear/linear.h"
#include "kernels/cpu/parallel.h"

namespace nibble::kernels::cpu {

size_t HeadLinearWorkspace(int threads, int64_t max_t, int64_t max_k) {
  return static_cast<size_t>(threads) * LinearWorkspace(std::min(max_t, kPassTokens), max_k);
}

void HeadLinear(const OpContext& context, const HeadLinearParams& p) {
  const auto heads = static_cast<int64_t>(p.weights.size());
  if (heads == 0) return;
  const size_t thread_bytes = LinearWorkspace(std::min(p.t, kPassTokens), p.weights[0]->k());
  NIBBLE_CHECK(static_cast<size_t>(Threads(context)) * thread_bytes <= context.workspace_bytes,
               "head_linear of {} tokens: workspace of {} bytes", p.t, context.workspace_bytes);
  const int64_t passes = (p.t + kPassTokens - 1) / kPassTokens;
  ForEachItem(context, heads * passes, [&](int64_t item, int thread) {
    const int64_t head = item % heads;
    const int64_t token = item / heads * kPassTokens;
    const OpContext alone = {.workspace = context.workspace + thread * thread_bytes,
                             .workspace_bytes = thread_bytes};
    Linear(alone, {.x = p.x + token * p.x_stride + head * p.x_head_stride,
                   .x_stride = p.x_stride,
                   .weight = p.weights[head],
                   .y = p.y + token * p.y_stride + head * p.y_head_stride,
                   .y_stride = p.y_stride,
                   .m = std::min(kPassTokens, p.t - token)});
  });
}

}  // namespace nibble::kernels::cpu
