#include "models/layers/gated_delta_net.h"

#include <algorithm>
#include <utility>

namespace nibble::models {

GatedDeltaNet::GatedDeltaNet(GatedDeltaNetConfig config, std::string prefix,
                             const TensorParallel& tp)
    : config_(config),
      prefix_(std::move(prefix)),
      tp_(tp),
      keys_(tp.Share(config.k_heads)),
      values_({.begin = keys_.begin * config.values_per_key(),
               .count = keys_.count * config.values_per_key()}) {}

void GatedDeltaNet::DescribeCaches(ModelInfo* info) {
  state_ = static_cast<int64_t>(info->state.size());
  info->state.push_back(
      {.conv = (config_.conv_width - 1) * Channels() * static_cast<int64_t>(sizeof(uint16_t)),
       .recurrent = ValueWidth() * config_.k_dim * static_cast<int64_t>(sizeof(float)),
       .chunks = true});
}

// Rows in the order q, k, v, z, heads ascending in each.
std::vector<LinearPart> GatedDeltaNet::QkvzParts() const {
  const int64_t dk = config_.k_dim, dv = config_.v_dim;
  const int64_t keys = config_.key_width(), values = config_.value_width();
  if (!config_.grouped_projections) {
    const LinearPart qkv = {prefix_ + ".in_proj_qkv", 2 * keys + values};
    const LinearPart z = {prefix_ + ".in_proj_z", values};
    if (!tp_.active()) return {qkv, z};
    const RowRange q = {.begin = keys_.begin * dk, .count = KeyWidth()};
    const RowRange k = {.begin = keys + q.begin, .count = q.count};
    const RowRange z_rows = {.begin = values_.begin * dv, .count = ValueWidth()};
    const RowRange v = {.begin = 2 * keys + z_rows.begin, .count = z_rows.count};
    return {{qkv.prefix, qkv.n, {q, k, v}}, {z.prefix, z.n, {z_rows}}};
  }
  // Of each key head: q, k, then v and z of its value heads.
  const int64_t group_values = config_.values_per_key() * dv;
  const int64_t group = 2 * dk + 2 * group_values;
  std::vector<RowRange> rows;
  const auto take = [&](int64_t offset, int64_t count) {
    for (int64_t h = keys_.begin; h < keys_.begin + keys_.count; ++h)
      rows.push_back({.begin = h * group + offset, .count = count});
  };
  take(0, dk);
  take(dk, dk);
  take(2 * dk, group_values);
  take(2 * dk + group_values, group_values);
  return {{prefix_ + ".in_proj_qkvz", config_.k_heads * group, rows}};
}

// Rows in the order b, a.
std::vector<LinearPart> GatedDeltaNet::BaParts() const {
  if (!config_.grouped_projections) {
    const std::vector<RowRange> rows =
        tp_.active() ? std::vector<RowRange>{values_} : std::vector<RowRange>();
    return {{prefix_ + ".in_proj_b", config_.v_heads, rows},
            {prefix_ + ".in_proj_a", config_.v_heads, rows}};
  }
  const int64_t group = config_.values_per_key();
  std::vector<RowRange> rows;
  for (const int64_t offset : {int64_t{0}, group}) {
    for (int64_t h = keys_.begin; h < keys_.begin + keys_.count; ++h)
      rows.push_back({.begin = 2 * h * group + offset, .count = group});
  }
  return {{prefix_ + ".in_proj_ba", 2 * int64_t{config_.v_heads}, rows}};
}

void GatedDeltaNet::VisitWeights(WeightVisitor& visitor) {
  visitor.SetSection(Section::kLinearAttention);
  visitor.VisitLinear(QkvzParts(), config_.hidden_size, Bias::kNone, &qkvz_);
  visitor.VisitLinear(BaParts(), config_.hidden_size, Bias::kNone, &ba_);
  // The convolution's channels are never grouped: q, k, v.
  const int64_t keys = config_.key_width();
  const RowRange q = {.begin = keys_.begin * config_.k_dim, .count = KeyWidth()};
  const RowRange k = {.begin = keys + q.begin, .count = q.count};
  const RowRange v = {.begin = 2 * keys + values_.begin * config_.v_dim, .count = ValueWidth()};
  const int64_t channels = 2 * keys + config_.value_width();
  visitor.VisitVector(prefix_ + ".conv1d.weight", channels * config_.conv_width, &conv_,
                      config_.conv_width, {q, k, v});
  visitor.VisitVector(prefix_ + ".A_log", config_.v_heads, &a_log_, 1, {values_});
  visitor.VisitVector(prefix_ + ".dt_bias", config_.v_heads, &dt_bias_, 1, {values_});
  visitor.VisitVector(prefix_ + ".norm.weight", config_.v_dim, &norm_);
  const ColumnRange columns =
      tp_.active() ? ColumnRange{values_.begin * config_.v_dim, ValueWidth()} : ColumnRange{};
  visitor.VisitLinear({{prefix_ + ".out_proj", config_.hidden_size}}, config_.value_width(),
                      Bias::kNone, &output_, columns);
}

kernels::GatedDeltaNetParams GatedDeltaNet::Sizes(int64_t t) const {
  return {.k_heads = static_cast<int32_t>(keys_.count),
          .v_heads = static_cast<int32_t>(values_.count),
          .k_dim = config_.k_dim,
          .v_dim = config_.v_dim,
          .conv_width = config_.conv_width,
          .t = t};
}

void GatedDeltaNet::Carve(ScratchArena& arena, const kernels::OpTable& ops,
                          const StepSizes& sizes) {
  arena.Take(&qkvz_out_, sizes.t * (Channels() + ValueWidth()));
  arena.Take(&ba_out_, sizes.t * 2 * values_.count);
  arena.Take(&mixed_, sizes.t * ValueWidth());
  if (tp_.active()) arena.Take(&partial_, sizes.t * config_.hidden_size);
  arena.NeedWorkspace(sizes.LinearWorkspace(ops, std::max(config_.hidden_size, ValueWidth())));
  arena.NeedWorkspace(ops.gated_delta_net_workspace(sizes.threads, Sizes(sizes.t)));
}

void GatedDeltaNet::Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) {
  RunPair(step, in, qkvz_, qkvz_out_, ba_, ba_out_);
  const StateLayer state = step.kv.state(state_);
  kernels::GatedDeltaNetParams params = Sizes(step.t);
  params.qkv = qkvz_out_;
  params.qkv_stride = qkvz_.n;
  params.z = qkvz_out_ + Channels();
  params.z_stride = qkvz_.n;
  params.b = ba_out_;
  params.a = ba_out_ + values_.count;
  params.ba_stride = ba_.n;
  params.conv_weight = conv_.data();
  params.a_log = a_log_.data();
  params.dt_bias = dt_bias_.data();
  params.norm_weight = norm_.data();
  params.eps = config_.norm_eps;
  params.sigmoid_gate = config_.sigmoid_gate;
  params.sequences = step.StateSequences();
  params.chunks = step.DeltaChunks();
  params.conv_state = state.conv;
  params.recurrent_state = state.recurrent;
  params.out = mixed_;
  step.ops.gated_delta_net(step.context, params);
  step.RunReduced(output_, {mixed_}, partial_, out);
}

}  // namespace nibble::models
