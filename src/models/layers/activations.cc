#include "models/layers/activations.h"

#include <algorithm>

namespace nibble::models {

int64_t Activations::Carve(std::byte* base, const kernels::OpTable& ops, int threads,
                           const ActivationSizes& sizes) {
  int64_t used = 0;
  const auto take = [&](auto** pointer, int64_t count) {
    *pointer = base == nullptr
                   ? nullptr
                   : reinterpret_cast<std::remove_reference_t<decltype(*pointer)>>(base + used);
    used += (count * static_cast<int64_t>(sizeof(**pointer)) + 63) / 64 * 64;
  };
  take(&x, sizes.t * sizes.d);
  take(&normed, std::max(sizes.t, sizes.rows) * sizes.d);
  take(&delta, sizes.t * sizes.d);
  take(&qkv, sizes.t * sizes.qkv);
  take(&q, sizes.t * sizes.attention);
  take(&attention, sizes.t * sizes.attention);
  take(&gate_up, sizes.t * 2 * sizes.f);
  take(&ffn, sizes.t * sizes.f);
  take(&row_x, sizes.rows * sizes.d);
  take(&row_delta, sizes.rows * sizes.d);
  take(&logits, sizes.rows * sizes.vocab);
  const int64_t max_m = std::max(sizes.t, sizes.rows);
  const int64_t max_k = std::max({sizes.d, sizes.attention, sizes.f});
  const size_t workspace =
      std::max(ops.linear_workspace(max_m, max_k),
               ops.attention_workspace(threads, sizes.t, sizes.q_heads, sizes.head_dim));
  context.workspace_bytes = workspace;
  take(&context.workspace, static_cast<int64_t>(workspace));
  return used;
}

int64_t Activations::Bytes(const kernels::OpTable& ops, int threads, const ActivationSizes& sizes) {
  return Activations().Carve(nullptr, ops, threads, sizes);
}

Status Activations::Make(const kernels::OpTable& ops, ThreadPool* pool,
                         const ActivationSizes& sizes) {
  NIBBLE_ASSIGN(memory_, Buffer::Allocate(static_cast<size_t>(Bytes(ops, pool->threads(), sizes))));
  Carve(memory_.data(), ops, pool->threads(), sizes);
  context.pool = pool;
  return {};
}

}  // namespace nibble::models
