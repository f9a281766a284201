// gpt-oss (20B, 120B): attention with sinks and biases, a window in every second layer, YaRN whose
// ramp is not rounded; experts with biases and a clamped activation, their gate and up rows
// interleaved. Published in MXFP4 blocks; in BF16 the experts lie transposed.
// Source: transformers' GptOssForCausalLM.
#include <memory>

#include "models/layers/decoder.h"
#include "models/layers/moe.h"

namespace nibble::models {
namespace {

// The even layers, unless layer_types says where.
std::vector<int32_t> ReadWindows(ConfigReader& config, int64_t layers) {
  const auto window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30, 128));
  std::vector<int32_t> windows = ReadLayerWindows(config, layers, window);
  if (!windows.empty()) return windows;
  windows.assign(layers, 0);
  for (int64_t l = 0; l < layers; l += 2) windows[l] = window;
  return windows;
}

MoeConfig ReadExperts(ConfigReader& config, const DecoderConfig& decoder) {
  MoeConfig moe;
  moe.hidden_size = decoder.hidden_size;
  moe.expert_size = config.Int("intermediate_size", 1, kMaxSize);
  moe.routing.experts = static_cast<int32_t>(config.Int("num_local_experts", 1, 1 << 16));
  moe.routing.top_k = static_cast<int32_t>(config.Int("num_experts_per_tok", 1, 1 << 16, 4));
  RequireRouting(config, moe.routing);
  moe.router = "router";
  moe.router_bias = Bias::kRequired;
  moe.activation = {.kind = kernels::ActivationKind::kClampedSilu,
                    .alpha = static_cast<float>(config.Float("swiglu_alpha", 0.0, 1e3, 1.702)),
                    .limit = static_cast<float>(config.Float("swiglu_limit", 1e-3, 1e6, 7.0))};
  moe.layout = {.interleaved = true, .transposed = {}};
  moe.expert_bias = true;
  return moe;
}

Result<std::unique_ptr<LoadableModel>> MakeGptOss(const boost::json::object& json,
                                                  const BuildOptions& options) {
  ConfigReader config(json, "config.json");
  DecoderConfig c = ReadDecoderConfig(config, "GptOssForCausalLM");
  c.norm_style = kernels::NormStyle::kScaleThenRound;
  AttentionConfig attention = ReadAttentionConfig(config, c, 64);
  attention.rope =
      std::make_shared<Rope>(ReadRopeConfig(config, attention.head_dim, c.max_positions, 150000.0));
  attention.sinks = true;
  if (config.Bool("attention_bias", true)) {
    attention.qkv_bias = Bias::kRequired;
    attention.output_bias = Bias::kRequired;
  }
  const std::vector<int32_t> windows = ReadWindows(config, c.layers);
  const MoeConfig moe = ReadExperts(config, c);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, 0));
  NIBBLE_TRY(CheckShares(options.tp, moe));
  const auto make_attention = [&](int64_t layer, const std::string& prefix) {
    AttentionConfig own = attention;
    own.window = windows[layer];
    return std::make_unique<Attention>(own, prefix + ".self_attn", options.tp);
  };
  const auto make_experts = [&](int64_t, const std::string& prefix) {
    return std::make_unique<Moe>(moe, prefix + ".mlp", options.tp);
  };
  return std::make_unique<Decoder>(c, MakePreNormLayers(c, make_attention, make_experts), options);
}

const Registration kRegistration({.architectures = {"GptOssForCausalLM"},
                                  .make = &MakeGptOss,
                                  .tiny_configs = {
                                      R"({"architectures": ["GptOssForCausalLM"], "hidden_size": 96,
    "intermediate_size": 48, "num_local_experts": 6, "num_experts_per_tok": 3, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 223,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "sliding_window": 37,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_scaling": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
                     "beta_slow": 1.0, "truncate": false}, "tie_word_embeddings": false})"}});

}  // namespace
}  // namespace nibble::models
