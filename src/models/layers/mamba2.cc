#include "models/layers/mamba2.h"

#include <algorithm>
#include <utility>

namespace nibble::models {

Mamba2::Mamba2(Mamba2Config config, std::string prefix, const TensorParallel& tp)
    : config_(config),
      prefix_(std::move(prefix)),
      tp_(tp),
      groups_(tp.Share(config.groups)),
      heads_(tp.Share(config.heads)) {}

void Mamba2::DescribeCaches(ModelInfo* info) {
  state_ = static_cast<int64_t>(info->state.size());
  info->state.push_back(
      {.conv = (config_.conv_width - 1) * Channels() * static_cast<int64_t>(sizeof(uint16_t)),
       .recurrent = Width() * config_.state_dim * static_cast<int64_t>(sizeof(float))});
}

// x, B and C, counted from the first channel of x.
std::vector<RowRange> Mamba2::ConvChannels() const {
  const int64_t n = config_.state_dim;
  const RowRange x = {.begin = heads_.begin * config_.head_dim, .count = Width()};
  const RowRange b = {.begin = config_.width() + groups_.begin * n, .count = groups_.count * n};
  const RowRange c = {.begin = b.begin + config_.bc_width(), .count = b.count};
  return {x, b, c};
}

void Mamba2::VisitWeights(WeightVisitor& visitor) {
  visitor.SetSection(Section::kLinearAttention);
  const int64_t width = config_.width();
  const int64_t channels = width + 2 * config_.bc_width();
  const RowRange share = {.begin = heads_.begin * config_.head_dim, .count = Width()};
  // Stored rows: z, x, B, C, dt.
  LinearPart input = {prefix_ + ".in_proj", width + channels + config_.heads};
  if (tp_.active()) {
    input.rows = {share};
    for (RowRange rows : ConvChannels()) {
      rows.begin += width;
      input.rows.push_back(rows);
    }
    input.rows.push_back({.begin = width + channels + heads_.begin, .count = heads_.count});
  }
  visitor.VisitLinear({input}, config_.hidden_size, Bias::kIfStored, &input_);
  visitor.VisitVector(prefix_ + ".conv1d.weight", channels * config_.conv_width, &conv_weight_,
                      config_.conv_width, ConvChannels());
  if (config_.conv_bias)
    visitor.VisitVector(prefix_ + ".conv1d.bias", channels, &conv_bias_, 1, ConvChannels());
  visitor.VisitVector(prefix_ + ".A_log", config_.heads, &a_log_, 1, {heads_});
  visitor.VisitVector(prefix_ + ".dt_bias", config_.heads, &dt_bias_, 1, {heads_});
  visitor.VisitVector(prefix_ + ".D", config_.heads, &d_, 1, {heads_});
  visitor.VisitVector(prefix_ + ".norm.weight", width, &norm_, 1, {share});
  const ColumnRange columns = tp_.active() ? ColumnRange{share.begin, share.count} : ColumnRange{};
  visitor.VisitLinear({{prefix_ + ".out_proj", config_.hidden_size}}, width, Bias::kIfStored,
                      &output_, columns);
}

Status Mamba2::FinishLoad(const FinishContext&) {
  if (tp_.rank > 0) output_.bias.clear();  // added once
  return {};
}

kernels::Mamba2Params Mamba2::Sizes(int64_t t) const {
  return {.heads = static_cast<int32_t>(heads_.count),
          .head_dim = config_.head_dim,
          .groups = static_cast<int32_t>(groups_.count),
          .state_dim = config_.state_dim,
          .conv_width = config_.conv_width,
          .t = t};
}

void Mamba2::Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) {
  arena.Take(&zxbcdt_, sizes.t * (Width() + Channels() + heads_.count));
  arena.Take(&mixed_, sizes.t * Width());
  if (tp_.active()) arena.Take(&partial_, sizes.t * config_.hidden_size);
  arena.NeedWorkspace(sizes.LinearWorkspace(ops, std::max(config_.hidden_size, Width())));
  arena.NeedWorkspace(ops.mamba2_workspace(sizes.threads, Sizes(sizes.t)));
}

void Mamba2::Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) {
  input_.Run(step, in, {zxbcdt_});
  const StateLayer state = step.kv.state(state_);
  kernels::Mamba2Params params = Sizes(step.t);
  params.zxbcdt = zxbcdt_;
  params.stride = input_.n;
  params.conv_weight = conv_weight_.data();
  params.conv_bias = config_.conv_bias ? conv_bias_.data() : nullptr;
  params.a_log = a_log_.data();
  params.dt_bias = dt_bias_.data();
  params.d = d_.data();
  params.norm_weight = norm_.data();
  params.eps = config_.norm_eps;
  params.dt_min = config_.dt_min;
  params.dt_max = config_.dt_max;
  params.sequences = step.StateSequences();
  params.conv_state = state.conv;
  params.recurrent_state = state.recurrent;
  params.out = mixed_;
  step.ops.mamba2(step.context, params);
  step.RunReduced(output_, {mixed_}, partial_, out);
}

Status CheckShares(const TensorParallel& tp, const Mamba2Config& mamba) {
  if (!tp.active()) return {};
  return TensorParallel::CheckDivides(tp.size, mamba.groups, "n_groups");
}

}  // namespace nibble::models
