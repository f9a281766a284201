#include "models/layers/block.h"

#include <algorithm>

#include "base/check.h"

namespace nibble::models {

int64_t StepSizes::LaidOutTokens(const kernels::OpTable& ops) const {
  constexpr int64_t kPart = kernels::kMostPartTokens;
  return ops.x_layout == nullptr ? t : (t + kPart - 1) / kPart * kPart;
}

size_t StepSizes::LinearWorkspace(const kernels::OpTable& ops, int64_t max_k) const {
  size_t bytes = ops.linear_workspace(t, max_k);
  if (prompt_forms.w4a4) bytes = std::max(bytes, ops.linear_w4a4_workspace(t, max_k));
  if (prompt_forms.fp8) bytes = std::max(bytes, ops.linear_fp8_workspace(t, max_k));
  return bytes;
}

void StepContext::RunReduced(const Linear& linear, const LayerInput& in, float* partial,
                             const LayerOutput& out) const {
  if (!tp.active()) return linear.Run(*this, in, out);
  NIBBLE_CHECK(!out.add, "a sum over ranks cannot be added to the residual stream");
  linear.RunF32(*this, in, partial);
  Reduce(partial, t * linear.n, out.y);
}

void StepContext::Reduce(float* partial, int64_t n, uint16_t* y) const {
  tp.comm->AllReduceSum(partial, n);
  ops.round(context, {.x = partial, .y = y, .n = n});
}

kernels::StateSequences StepContext::StateSequences() const {
  return {.count = static_cast<int64_t>(batch.kv_len.size()),
          .q_start = batch.q_start.data(),
          .kv_len = batch.kv_len.data(),
          .slots = batch.state_slots.data()};
}

kernels::DeltaChunks StepContext::DeltaChunks() const {
  if (batch.chunked_tokens == 0) return {};
  return {.tokens = batch.chunked.data(),
          .sequences = batch.chunked_sequences,
          .total = batch.chunked_tokens};
}

kernels::AttentionParams StepContext::Attention(const kernels::KvLayerView& cache) const {
  return {.t = t,
          .sequences = static_cast<int64_t>(batch.kv_len.size()),
          .q_start = batch.q_start.data(),
          .kv_len = batch.kv_len.data(),
          .page_table = batch.page_table.data(),
          .max_pages = batch.max_pages,
          .cache = cache};
}

}  // namespace nibble::models
