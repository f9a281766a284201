#include "models/layers/attention.h"

#include <cmath>

namespace nibble::models {

void Attention::VisitWeights(WeightVisitor& visitor, const std::string& prefix,
                             const AttentionConfig& config) {
  const int64_t q_rows = config.attention_width();
  const int64_t kv_rows = int64_t{config.kv_heads} * config.head_dim;
  visitor.VisitLinear(
      {{prefix + ".q_proj", q_rows}, {prefix + ".k_proj", kv_rows}, {prefix + ".v_proj", kv_rows}},
      config.hidden_size, config.qkv_bias, &qkv_);
  visitor.VisitLinear({{prefix + ".o_proj", config.hidden_size}}, q_rows, config.output_bias,
                      &output_);
  if (config.qk_norm) {
    visitor.VisitVector(prefix + ".q_norm.weight", config.head_dim, &q_norm_);
    visitor.VisitVector(prefix + ".k_norm.weight", config.head_dim, &k_norm_);
  }
  visitor.VisitScalar({prefix + ".k_proj.k_scale", prefix + ".k_scale"}, &k_scale_);
  visitor.VisitScalar({prefix + ".v_proj.v_scale", prefix + ".v_scale"}, &v_scale_);
}

void Attention::Forward(const kernels::OpTable& ops, const Batch& batch,
                        const kernels::KvLayerView& cache, const RopeTable& rope,
                        const AttentionConfig& config, Activations& a) const {
  const auto t = static_cast<int64_t>(batch.tokens.size());
  qkv_.Run(ops, a.context, a.normed, t, a.qkv);
  ops.rope_and_cache(a.context, {.qkv = a.qkv,
                                 .t = t,
                                 .q_heads = config.q_heads,
                                 .q_norm = config.qk_norm ? q_norm_.data() : nullptr,
                                 .k_norm = config.qk_norm ? k_norm_.data() : nullptr,
                                 .eps = config.norm_eps,
                                 .cos = rope.cos.data(),
                                 .sin = rope.sin.data(),
                                 .rotary_dim = rope.rotary_dim,
                                 .positions = batch.positions.data(),
                                 .slots = batch.slots.data(),
                                 .cache = cache,
                                 .q_out = a.q});
  ops.attention(a.context,
                {.q = a.q,
                 .out = a.attention,
                 .t = t,
                 .sequences = static_cast<int64_t>(batch.kv_len.size()),
                 .q_start = batch.q_start.data(),
                 .kv_len = batch.kv_len.data(),
                 .page_table = batch.page_table.data(),
                 .max_pages = batch.max_pages,
                 .q_heads = config.q_heads,
                 .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim))),
                 .window = config.window,
                 .cache = cache});
  output_.Run(ops, a.context, a.attention, t, a.delta);
}

}  // namespace nibble::models
