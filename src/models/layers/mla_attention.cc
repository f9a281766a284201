#include "models/layers/mla_attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace nibble::models {
namespace {

RowRange HeadRows(const RowRange& heads, int64_t rows_of_a_head) {
  return {.begin = heads.begin * rows_of_a_head, .count = heads.count * rows_of_a_head};
}

std::vector<const kernels::PackedWeight*> PackedHeads(const std::vector<Linear>& heads) {
  std::vector<const kernels::PackedWeight*> packed;
  for (const Linear& head : heads) packed.push_back(head.segments[0].weight.get());
  return packed;
}

}  // namespace

MlaAttention::MlaAttention(MlaConfig config, std::string prefix, const TensorParallel& tp)
    : config_(std::move(config)),
      prefix_(std::move(prefix)),
      tp_(tp),
      share_(tp.Share(config_.heads)) {}

void MlaAttention::DescribeCaches(ModelInfo* info) {
  cache_ = static_cast<int64_t>(info->kv.size());
  info->kv.push_back(
      {.kv_heads = 1, .head_dim = static_cast<int32_t>(config_.cache_dim()), .shared_kv = true});
}

void MlaAttention::VisitWeights(WeightVisitor& visitor) {
  visitor.SetSection(Section::kAttention);
  VisitQueries(visitor);
  VisitLatent(visitor);
  const ColumnRange columns =
      tp_.active() ? ColumnRange{share_.begin * config_.v_dim, share_.count * config_.v_dim}
                   : ColumnRange{};
  visitor.VisitLinear({{prefix_ + ".o_proj", config_.hidden_size}}, config_.heads * config_.v_dim,
                      config_.bias, &output_, columns);
}

void MlaAttention::VisitQueries(WeightVisitor& visitor) {
  const int64_t rows = config_.heads * config_.q_head_dim();
  std::vector<RowRange> share;
  if (tp_.active()) share = {HeadRows(share_, config_.q_head_dim())};
  if (config_.q_rank == 0) {
    visitor.VisitLinear({{prefix_ + ".q_proj", rows, share}}, config_.hidden_size, Bias::kNone,
                        &q_b_);
    return;
  }
  visitor.VisitLinear({{prefix_ + ".q_a_proj", config_.q_rank}}, config_.hidden_size, config_.bias,
                      &q_a_);
  visitor.VisitVector(prefix_ + ".q_a_layernorm.weight", config_.q_rank, &q_norm_);
  visitor.VisitLinear({{prefix_ + ".q_b_proj", rows, share}}, config_.q_rank, Bias::kNone, &q_b_);
}

void MlaAttention::VisitLatent(WeightVisitor& visitor) {
  visitor.VisitLinear({{prefix_ + ".kv_a_proj_with_mqa", config_.cache_dim()}}, config_.hidden_size,
                      config_.bias, &kv_a_);
  visitor.VisitVector(prefix_ + ".kv_a_layernorm.weight", config_.kv_rank, &kv_norm_);

  const int64_t head_rows = config_.nope_dim + config_.v_dim;
  HeadLinears keys = {.prefix = prefix_ + ".kv_b_proj",
                      .n = config_.heads * head_rows,
                      .k = config_.kv_rank,
                      .transposed = true};
  HeadLinears values = keys;
  values.transposed = false;
  for (int64_t h = share_.begin; h < share_.begin + share_.count; ++h) {
    keys.heads.push_back({.begin = h * head_rows, .count = config_.nope_dim});
    values.heads.push_back({.begin = h * head_rows + config_.nope_dim, .count = config_.v_dim});
  }
  visitor.VisitHeadLinears(keys, &key_heads_);
  visitor.VisitHeadLinears(values, &value_heads_);

  // One row is key and value, so it has one scale.
  float unused = 1.0f;
  visitor.VisitScalar({prefix_ + ".k_proj.k_scale", prefix_ + ".k_scale"}, &cache_scale_);
  visitor.VisitScalar({prefix_ + ".v_proj.v_scale", prefix_ + ".v_scale"}, &unused);
}

Status MlaAttention::FinishLoad(const FinishContext& context) {
  context.info->kv[cache_].k_scale = cache_scale_;
  context.info->kv[cache_].v_scale = cache_scale_;
  NIBBLE_TRY(config_.rope->Build(context.max_positions, *context.ops.device));
  keys_ = PackedHeads(key_heads_);
  values_ = PackedHeads(value_heads_);
  if (context.ops.prepare_heads != nullptr) {
    NIBBLE_ASSIGN(prepared_keys_, context.ops.prepare_heads(keys_));
    NIBBLE_ASSIGN(prepared_values_, context.ops.prepare_heads(values_));
  }
  if (tp_.rank > 0) output_.bias.clear();  // added once
  return {};
}

std::vector<std::string_view> MlaAttention::RequiredOps() const {
  return {"linear", "rms_norm", "head_linear", "attention"};
}

void MlaAttention::Carve(ScratchArena& arena, const kernels::OpTable& ops, const StepSizes& sizes) {
  const int64_t t = sizes.t;
  if (config_.q_rank > 0) arena.Take(&q_latent_, t * config_.q_rank);
  arena.Take(&q_, t * share_.count * config_.q_head_dim());
  arena.Take(&kv_, t * config_.cache_dim());
  arena.Take(&absorbed_, t * share_.count * config_.cache_dim());
  arena.Take(&attention_, t * share_.count * config_.cache_dim());
  arena.Take(&heads_, t * share_.count * config_.v_dim);
  if (tp_.active()) arena.Take(&partial_, t * config_.hidden_size);
  arena.NeedWorkspace(sizes.LinearWorkspace(
      ops, std::max({config_.hidden_size, config_.q_rank, share_.count * config_.v_dim})));
  arena.NeedWorkspace(
      ops.head_linear_workspace(sizes.threads, t, std::max(config_.nope_dim, config_.kv_rank)));
  arena.NeedWorkspace(ops.attention_workspace(sizes.threads, t, static_cast<int32_t>(share_.count),
                                              static_cast<int32_t>(config_.cache_dim())));
}

// q_ (T, H, N + P) = the queries, not yet rotated.
void MlaAttention::RunQueries(const StepContext& step, const LayerInput& in) {
  if (config_.q_rank == 0) return q_b_.Run(step, in, {q_});
  q_a_.Run(step, in, {q_latent_});
  const kernels::InputNorm norm = {.weight = q_norm_.data(), .eps = config_.norm_eps};
  q_b_.Run(step, {q_latent_, norm}, {q_});
}

// Tells a calibration what kv_b_proj sees in the expanded form: the normed latents. No op of the
// absorbed form has them at hand; calibration runs on the host and may take its time.
void MlaAttention::ObserveLatents(const StepContext& step) const {
  const Linear& expansion = value_heads_.front();
  if (expansion.observer == nullptr) return;
  std::vector<uint16_t> latents(step.t * config_.kv_rank);
  for (int64_t i = 0; i < step.t; ++i)
    std::copy_n(kv_ + i * config_.cache_dim(), config_.kv_rank,
                latents.begin() + i * config_.kv_rank);
  std::vector<uint16_t> normed(latents.size());
  step.ops.rms_norm(step.context, {.x = latents.data(),
                                   .weight = kv_norm_.data(),
                                   .out = normed.data(),
                                   .t = step.t,
                                   .d = config_.kv_rank,
                                   .eps = config_.norm_eps});
  expansion.Observe(normed.data(), step.t);
}

void MlaAttention::Forward(const StepContext& step, const LayerInput& in, const LayerOutput& out) {
  const Batch& batch = step.batch;
  const auto heads = static_cast<int32_t>(share_.count);
  const int64_t q_dim = config_.q_head_dim();
  const int64_t cache_dim = config_.cache_dim();
  const kernels::KvLayerView cache = step.kv.layer(cache_);
  const Rope& rope = *config_.rope;
  RunQueries(step, in);
  kv_a_.Run(step, in, {kv_});
  ObserveLatents(step);
  const kernels::MlaRopeAndCacheParams rotation = {
      .kv_a = kv_,
      .kv_a_stride = cache_dim,
      .kv_norm = kv_norm_.data(),
      .eps = config_.norm_eps,
      .latent_dim = static_cast<int32_t>(config_.kv_rank),
      .rope_dim = static_cast<int32_t>(config_.rope_dim),
      .q = q_ + config_.nope_dim,
      .q_stride = heads * q_dim,
      .q_head_stride = q_dim,
      .q_heads = heads,
      .t = step.t,
      .pairs = config_.pairs,
      .cos = rope.cos(),
      .sin = rope.sin(),
      .positions = batch.positions.data(),
      .slots = batch.slots.data(),
      .cache = cache,
      .q_out = absorbed_};
  step.ops.head_linear(step.context, {.x = q_,
                                      .x_stride = heads * q_dim,
                                      .x_head_stride = q_dim,
                                      .weights = keys_,
                                      .prepared = prepared_keys_.get(),
                                      .y = absorbed_,
                                      .y_stride = heads * cache_dim,
                                      .y_head_stride = cache_dim,
                                      .t = step.t});
  kernels::AttentionParams attention = step.Attention(cache);
  attention.q = absorbed_;
  attention.mla_rope = &rotation;
  attention.out = attention_;
  attention.q_heads = heads;
  attention.scale = static_cast<float>(config_.scale);
  step.ops.attention(step.context, attention);
  step.ops.head_linear(step.context, {.x = attention_,
                                      .x_stride = heads * cache_dim,
                                      .x_head_stride = cache_dim,
                                      .weights = values_,
                                      .prepared = prepared_values_.get(),
                                      .y = heads_,
                                      .y_stride = heads * config_.v_dim,
                                      .y_head_stride = config_.v_dim,
                                      .t = step.t});
  step.RunReduced(output_, {heads_}, partial_, out);
}

MlaConfig ReadMlaConfig(ConfigReader& config, int64_t hidden_size, int64_t max_positions) {
  constexpr int64_t kMaxDim = 1024;
  constexpr double kDefaultTheta = 10000.0;
  MlaConfig mla;
  mla.hidden_size = hidden_size;
  mla.heads = static_cast<int32_t>(config.Int("num_attention_heads", 1, 1 << 16));
  mla.q_rank = config.Int("q_lora_rank", 1, 1 << 20, 0);
  mla.kv_rank = config.Int("kv_lora_rank", 1, kMaxDim);
  mla.nope_dim = config.Int("qk_nope_head_dim", 1, kMaxDim);
  mla.rope_dim = config.Int("qk_rope_head_dim", 2, kMaxDim);
  mla.v_dim = config.Int("v_head_dim", 1, kMaxDim);
  config.Require(mla.rope_dim % 2 == 0, fmt::format("qk_rope_head_dim {} is odd", mla.rope_dim));
  config.Require(mla.cache_dim() <= kernels::kMaxHeadDim,
                 fmt::format("kv_lora_rank {} and qk_rope_head_dim {} exceed {} together",
                             mla.kv_rank, mla.rope_dim, kernels::kMaxHeadDim));
  if (config.Bool("attention_bias", false)) mla.bias = Bias::kRequired;
  if (!config.Bool("rope_interleave", true)) mla.pairs = kernels::RopePairs::kHalves;
  mla.rope =
      std::make_shared<Rope>(ReadRopeConfig(config, mla.rope_dim, max_positions, kDefaultTheta));
  mla.scale = 1.0 / std::sqrt(static_cast<double>(mla.q_head_dim()));
  // YaRN's temperature, once for the query and once for the key.
  const double temperature = RopeScoreFactor(mla.rope->config());
  mla.scale *= temperature * temperature;
  return mla;
}

}  // namespace nibble::models
