#include "models/layers/dense_decoder.h"

#include <utility>

#include "base/check.h"

namespace nibble::models {
namespace {

// Far beyond any published model; keeps products of sizes inside int64.
constexpr int64_t kMaxSize = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;

}  // namespace

DenseDecoderConfig ReadDenseDecoderConfig(ConfigReader& config, std::string architecture,
                                          const ClassDefaults& defaults) {
  DenseDecoderConfig c;
  c.architecture = std::move(architecture);
  c.layers = config.Int("num_hidden_layers", 1, kMaxLayers);
  c.ffn_size = config.Int("intermediate_size", 1, kMaxSize);
  c.vocab_size = config.Int("vocab_size", 1, kMaxSize);
  c.max_positions = config.Int("max_position_embeddings", 1, int64_t{1} << 30);
  c.tied_embeddings = config.Bool("tie_word_embeddings", false);
  c.norm_eps = static_cast<float>(config.Float("rms_norm_eps", 0.0, 1.0, 1e-6));

  AttentionConfig& a = c.attention;
  a.hidden_size = config.Int("hidden_size", 1, kMaxSize);
  a.q_heads = static_cast<int32_t>(config.Int("num_attention_heads", 1, 1 << 16));
  a.kv_heads = static_cast<int32_t>(config.Int("num_key_value_heads", 1, 1 << 16, a.q_heads));
  a.head_dim = static_cast<int32_t>(
      config.Int("head_dim", 1, 1 << 16,
                 defaults.head_dim > 0 ? defaults.head_dim : a.hidden_size / a.q_heads));
  a.norm_eps = c.norm_eps;
  config.Require(a.q_heads % a.kv_heads == 0,
                 fmt::format("num_attention_heads {} is not a multiple of num_key_value_heads {}",
                             a.q_heads, a.kv_heads));
  config.Require(a.head_dim >= 2 && a.head_dim % 2 == 0 && a.head_dim <= 512,
                 fmt::format("head_dim {}: expected an even number in 2..512", a.head_dim));
  config.Require(
      config.String("hidden_act", "silu") == "silu",
      fmt::format("hidden_act {}: only silu is supported", config.String("hidden_act", "silu")));

  c.layer_window.assign(c.layers, 0);
  c.rope = ReadRopeConfig(config, a.head_dim, c.max_positions, defaults.rope_theta);
  return c;
}

void ReadQwenWindows(ConfigReader& config, DenseDecoderConfig* c) {
  if (!config.Bool("use_sliding_window", false)) return;
  const auto window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30));
  const std::vector<std::string> types = config.Strings("layer_types");
  if (!types.empty()) {
    config.Require(static_cast<int64_t>(types.size()) == c->layers,
                   fmt::format("layer_types names {} layers, num_hidden_layers is {}", types.size(),
                               c->layers));
    if (!config.status()) return;
    for (int64_t l = 0; l < c->layers; ++l)
      c->layer_window[l] = types[l] == "sliding_attention" ? window : 0;
    return;
  }
  const int64_t first = config.Int("max_window_layers", 0, 1 << 20, 28);
  for (int64_t l = first; l < c->layers; ++l) c->layer_window[l] = window;
}

DenseDecoder::DenseDecoder(DenseDecoderConfig config)
    : config_(std::move(config)), layers_(config_.layers) {
  info_.architecture = config_.architecture;
  info_.vocab_size = config_.vocab_size;
  info_.hidden_size = config_.attention.hidden_size;
  info_.max_positions = config_.max_positions;
  for (int32_t window : config_.layer_window) {
    info_.kv.push_back({.kv_heads = config_.attention.kv_heads,
                        .head_dim = config_.attention.head_dim,
                        .window = window});
  }
}

void DenseDecoder::VisitWeights(WeightVisitor& visitor) {
  const int64_t d = config_.attention.hidden_size;
  visitor.Ignore("rotary_emb.inv_freq");
  visitor.VisitEmbedding("model.embed_tokens.weight", config_.vocab_size, d,
                         config_.tied_embeddings, &embedding_);
  for (int64_t l = 0; l < config_.layers; ++l) {
    const std::string prefix = fmt::format("model.layers.{}", l);
    visitor.VisitVector(prefix + ".input_layernorm.weight", d, &layers_[l].attention_norm);
    layers_[l].attention.VisitWeights(visitor, prefix + ".self_attn", config_.attention);
    visitor.VisitVector(prefix + ".post_attention_layernorm.weight", d, &layers_[l].ffn_norm);
    layers_[l].ffn.VisitWeights(visitor, prefix + ".mlp", d, config_.ffn_size);
  }
  visitor.VisitVector("model.norm.weight", d, &final_norm_);
  if (config_.tied_embeddings) {
    visitor.Ignore("lm_head.weight");  // some exports store the tied copy
  } else {
    visitor.VisitLinear({{"lm_head", config_.vocab_size}}, d, Bias::kNone, &head_);
  }
}

std::vector<std::string_view> DenseDecoder::RequiredOps() const {
  return {"pack_weight", "linear", "embed",          "rms_norm",
          "gather_rows", "swiglu", "rope_and_cache", "attention"};
}

Status DenseDecoder::FinishLoad(const kernels::OpTable& ops, ThreadPool* pool,
                                int64_t max_positions) {
  ops_ = &ops;
  pool_ = pool;
  for (int64_t l = 0; l < config_.layers; ++l) {
    info_.kv[l].k_scale = layers_[l].attention.k_scale();
    info_.kv[l].v_scale = layers_[l].attention.v_scale();
  }
  rope_ = MakeRopeTable(config_.rope, max_positions);
  return {};
}

ActivationSizes DenseDecoder::Sizes(int64_t max_tokens, int64_t max_rows) const {
  return {.t = max_tokens,
          .rows = max_rows,
          .d = config_.attention.hidden_size,
          .qkv = config_.attention.qkv_rows(),
          .attention = config_.attention.attention_width(),
          .f = config_.ffn_size,
          .vocab = config_.vocab_size,
          .q_heads = config_.attention.q_heads,
          .head_dim = config_.attention.head_dim};
}

int64_t DenseDecoder::ActivationBytes(int64_t max_tokens, int64_t max_rows) const {
  return Activations::Bytes(*ops_, pool_->threads(), Sizes(max_tokens, max_rows));
}

Status DenseDecoder::Prepare(int64_t max_tokens, int64_t max_rows) {
  return activations_.Make(*ops_, pool_, Sizes(max_tokens, max_rows));
}

const float* DenseDecoder::Forward(const Batch& batch, const KvPool& kv) {
  Activations& a = activations_;
  const auto t = static_cast<int64_t>(batch.tokens.size());
  const auto rows = static_cast<int64_t>(batch.logits_rows.size());
  const int64_t d = config_.attention.hidden_size;
  const auto norm = [&](uint16_t* x, const uint16_t* delta, const std::vector<float>& weight,
                        int64_t count) {
    ops_->rms_norm(a.context, {.x = x,
                               .delta = delta,
                               .weight = weight.data(),
                               .out = a.normed,
                               .t = count,
                               .d = d,
                               .eps = config_.norm_eps});
  };

  ops_->embed(a.context, {.ids = batch.tokens.data(),
                          .table = embedding_.segments[0].weight.get(),
                          .out = a.x,
                          .t = t});
  const uint16_t* delta = nullptr;
  for (int64_t l = 0; l < config_.layers; ++l) {
    const Layer& layer = layers_[l];
    AttentionConfig attention = config_.attention;
    attention.window = config_.layer_window[l];
    norm(a.x, delta, layer.attention_norm, t);
    layer.attention.Forward(*ops_, batch, kv.layer(l), rope_, attention, a);
    norm(a.x, a.delta, layer.ffn_norm, t);
    layer.ffn.Forward(*ops_, t, a);
    delta = a.delta;
  }
  if (rows == 0) return a.logits;
  ops_->gather_rows(
      a.context, {.x = a.x, .rows = batch.logits_rows.data(), .out = a.row_x, .r = rows, .d = d});
  ops_->gather_rows(
      a.context,
      {.x = a.delta, .rows = batch.logits_rows.data(), .out = a.row_delta, .r = rows, .d = d});
  norm(a.row_x, a.row_delta, final_norm_, rows);
  const Linear& head = config_.tied_embeddings ? embedding_ : head_;
  head.RunF32(*ops_, a.context, a.normed, rows, a.logits);
  return a.logits;
}

}  // namespace nibble::models
