#include "models/layers/attention.h"

#include <cmath>
#include <utility>

namespace nibble::models {
namespace {

// Rows of whole heads.
RowRange HeadRows(const RowRange& heads, int64_t head_dim) {
  return {.begin = heads.begin * head_dim, .count = heads.count * head_dim};
}

}  // namespace

Attention::Attention(AttentionConfig config, std::string prefix, const TensorParallel& tp)
    : config_(std::move(config)),
      prefix_(std::move(prefix)),
      tp_(tp),
      q_share_(tp.Share(config_.q_heads)),
      kv_share_(tp.KvShare(config_.kv_heads)) {}

void Attention::DescribeCaches(ModelInfo* info) {
  cache_ = static_cast<int64_t>(info->kv.size());
  info->kv.push_back({.kv_heads = static_cast<int32_t>(kv_share_.count),
                      .head_dim = config_.head_dim,
                      .window = config_.window > 0 ? config_.window : config_.chunk});
  if (config_.rope != nullptr && config_.rope->config().type == RopeType::kLongRope)
    info->rope_border = config_.rope->config().original_max_positions;
}

// q rows, k rows, v rows, then gate rows.
std::vector<LinearPart> Attention::QkvParts() const {
  const int64_t dh = config_.head_dim;
  RowRange q = HeadRows(q_share_, dh), k = HeadRows(kv_share_, dh), v = k;
  if (config_.fused_qkv) {
    k.begin += config_.q_width();
    v.begin += config_.q_width() + config_.kv_width();
    const int64_t rows = config_.q_width() + 2 * config_.kv_width();
    if (!tp_.active()) return {{prefix_ + ".qkv_proj", rows}};
    return {{prefix_ + ".qkv_proj", rows, {q, k, v}}};
  }
  const bool all = !tp_.active();
  const auto rows = [&](const RowRange& share) {
    return all ? std::vector<RowRange>() : std::vector<RowRange>{share};
  };
  const LinearPart k_part = {prefix_ + ".k_proj", config_.kv_width(), rows(k)};
  const LinearPart v_part = {prefix_ + ".v_proj", config_.kv_width(), rows(v)};
  if (!config_.output_gate) {
    return {{prefix_ + ".q_proj", config_.q_width(), rows(q)}, k_part, v_part};
  }
  std::vector<RowRange> queries, gates;
  for (int64_t h = q_share_.begin; h < q_share_.begin + q_share_.count; ++h) {
    queries.push_back({.begin = 2 * h * dh, .count = dh});
    gates.push_back({.begin = (2 * h + 1) * dh, .count = dh});
  }
  const int64_t stored = 2 * config_.q_width();
  return {
      {prefix_ + ".q_proj", stored, queries}, k_part, v_part, {prefix_ + ".q_proj", stored, gates}};
}

void Attention::VisitWeights(WeightVisitor& visitor) {
  visitor.SetSection(Section::kAttention);
  const ColumnRange columns = tp_.active() ? ColumnRange{HeadRows(q_share_, config_.head_dim).begin,
                                                         q_share_.count * config_.head_dim}
                                           : ColumnRange{};
  visitor.VisitLinear(QkvParts(), config_.hidden_size, config_.qkv_bias, &qkv_);
  visitor.VisitLinear({{prefix_ + ".o_proj", config_.hidden_size}}, config_.q_width(),
                      config_.output_bias, &output_, columns);
  if (config_.qk_norm && config_.qk_norm_weights) {
    visitor.VisitVector(prefix_ + ".q_norm.weight", config_.head_dim, &q_norm_);
    visitor.VisitVector(prefix_ + ".k_norm.weight", config_.head_dim, &k_norm_);
  }
  if (config_.sinks) {
    visitor.VisitVector(prefix_ + ".sinks", config_.q_heads, &sinks_, 1, {q_share_});
  }
  visitor.VisitScalar({prefix_ + ".k_proj.k_scale", prefix_ + ".k_scale"}, &k_scale_);
  visitor.VisitScalar({prefix_ + ".v_proj.v_scale", prefix_ + ".v_scale"}, &v_scale_);
}

Status Attention::FinishLoad(const FinishContext& context) {
  context.info->kv[cache_].k_scale = k_scale_;
  context.info->kv[cache_].v_scale = v_scale_;
  if (config_.rope != nullptr) {
    NIBBLE_TRY(config_.rope->Build(context.max_positions, *context.ops.device));
    if (config_.rope->long_rows() == 0) context.info->rope_border = 0;
    context.info->rope_long_rows = config_.rope->long_rows();
  }
  if (config_.query_scale != nullptr)
    NIBBLE_TRY(config_.query_scale->Build(context.max_positions, *context.ops.device));
  if (config_.qk_norm && !config_.qk_norm_weights) {
    const std::vector<float> ones(config_.head_dim, 1.0f);
    NIBBLE_TRY(q_norm_.Assign(ones, *context.ops.device));
    NIBBLE_TRY(k_norm_.Assign(ones, *context.ops.device));
  }
  if (tp_.rank > 0) output_.bias.clear();  // added once
  return {};
}

std::vector<std::string_view> Attention::RequiredOps() const { return {"linear", "attention"}; }

void Attention::Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) {
  const int64_t q_width = q_share_.count * config_.head_dim;
  const int64_t kv_width = kv_share_.count * config_.head_dim;
  arena.Take(&qkv_out_, sizes.t * (q_width * (config_.output_gate ? 2 : 1) + 2 * kv_width));
  arena.Take(&q_, sizes.t * q_width);
  arena.Take(&attention_, sizes.LaidOutTokens(ops) * q_width);
  if (tp_.active()) arena.Take(&partial_, sizes.t * config_.hidden_size);
  arena.NeedWorkspace(sizes.LinearWorkspace(ops, std::max(config_.hidden_size, q_width)));
  arena.NeedWorkspace(ops.attention_workspace(
      sizes.threads, sizes.t, static_cast<int32_t>(q_share_.count), config_.head_dim));
}

void Attention::Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) {
  const Batch& batch = step.batch;
  const auto q_heads = static_cast<int32_t>(q_share_.count);
  const int64_t q_width = q_heads * config_.head_dim;
  const kernels::KvLayerView cache = step.kv.layer(cache_);
  const Rope* rope = config_.rope.get();
  qkv_.Run(step, in, {qkv_out_});
  const kernels::RopeAndCacheParams rotation = {
      .qkv = qkv_out_,
      .qkv_stride = qkv_.n,
      .t = step.t,
      .q_heads = q_heads,
      .q_norm = config_.qk_norm ? q_norm_.data() : nullptr,
      .k_norm = config_.qk_norm ? k_norm_.data() : nullptr,
      .eps = config_.norm_eps,
      .norm_style = config_.norm_style,
      .norm_after_rotation = config_.norm_after_rotation,
      .cos = rope != nullptr ? rope->cos() : nullptr,
      .sin = rope != nullptr ? rope->sin() : nullptr,
      .rotary_dim = rope != nullptr ? rope->rotary_dim() : 0,
      .pairs = config_.pairs,
      .positions = batch.positions.data(),
      .q_scale = config_.query_scale != nullptr ? config_.query_scale->table().data() : nullptr,
      .slots = batch.slots.data(),
      .cache = cache,
      .q_out = q_};
  const double scale =
      config_.scale > 0 ? config_.scale : 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  kernels::AttentionParams attention = step.Attention(cache);
  attention.rope = &rotation;
  if (config_.output_gate) {
    attention.gate = qkv_out_ + qkv_.n - q_width;
    attention.gate_stride = qkv_.n;
  }
  attention.out = attention_;
  attention.out_layout = output_.XLayout(step);
  attention.q_heads = q_heads;
  attention.scale = static_cast<float>(scale);
  attention.window = config_.window;
  attention.chunk = config_.chunk;
  attention.sinks = config_.sinks ? sinks_.data() : nullptr;
  step.ops.attention(step.context, attention);
  step.RunReduced(output_, {.x = attention_, .layout = attention.out_layout}, partial_, out);
}

}  // namespace nibble::models
