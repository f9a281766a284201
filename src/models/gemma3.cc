// Gemma 3, the text model: norms on both sides of every block, local layers with a window between
// global ones, each kind with its own rotation. Source: transformers' Gemma3ForCausalLM.
#include <cmath>
#include <memory>

#include "models/layers/decoder.h"
#include "numerics/bf16.h"

namespace nibble::models {
namespace {

// What published files leave out: the multimodal ones give little more than the sizes.
constexpr std::string_view kDefaults = R"({"vocab_size": 262208, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
    "tie_word_embeddings": true, "sliding_window": 4096})";

// The rope of one kind of layers from rope_parameters; nothing where the config has none for it.
std::optional<RopeConfig> ReadTypedRope(ConfigReader& config, const char* layer_type,
                                        int64_t head_dim, int64_t max_positions,
                                        double default_theta) {
  auto parameters = config.Object("rope_parameters");
  if (!parameters) return std::nullopt;
  auto own = parameters->Object(layer_type);
  config.Adopt(*parameters);
  if (!own) return std::nullopt;
  const RopeConfig rope = ReadRopeParameters(*own, head_dim, max_positions, default_theta);
  config.Adopt(*own);
  return rope;
}

RopeConfig ReadGlobalRope(ConfigReader& config, int64_t head_dim, int64_t max_positions) {
  constexpr double kTheta = 1000000.0;
  const auto typed = ReadTypedRope(config, "full_attention", head_dim, max_positions, kTheta);
  return typed ? *typed : ReadRopeConfig(config, head_dim, max_positions, kTheta);
}

RopeConfig ReadLocalRope(ConfigReader& config, int64_t head_dim, int64_t max_positions) {
  const double theta = config.Float("rope_local_base_freq", 1.0, 1e12, 10000.0);
  const auto typed = ReadTypedRope(config, "sliding_attention", head_dim, max_positions, theta);
  return typed ? *typed : RopeConfig{.theta = theta, .rotary_dim = head_dim};
}

// One per layer, 0 for the global ones. Without layer_types every sixth is global.
std::vector<int32_t> ReadWindows(ConfigReader& config, int64_t layers) {
  const auto window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30));
  std::vector<int32_t> windows = ReadLayerWindows(config, layers, window);
  if (!windows.empty()) return windows;
  const int64_t pattern = config.Int("sliding_window_pattern", 1, kMaxLayers,
                                     config.Int("_sliding_window_pattern", 1, kMaxLayers, 6));
  for (int64_t l = 0; l < layers; ++l) windows.push_back((l + 1) % pattern != 0 ? window : 0);
  return windows;
}

AttentionConfig ReadGemmaAttention(ConfigReader& config, const DecoderConfig& c) {
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.qk_norm = true;
  attention.scale = 1.0 / std::sqrt(config.Float("query_pre_attn_scalar", 1e-3, 1e6, 256.0));
  if (config.Bool("attention_bias", false)) {
    attention.qkv_bias = Bias::kRequired;
    attention.output_bias = Bias::kRequired;
  }
  for (const char* name : {"attn_logit_softcapping", "final_logit_softcapping"})
    config.Require(!config.Has(name), fmt::format("{} is not supported", name));
  config.Require(!config.Bool("use_bidirectional_attention", false),
                 "use_bidirectional_attention true is not supported");
  return attention;
}

FeedForwardConfig ReadGemmaFeedForward(ConfigReader& config, const DecoderConfig& c) {
  const std::string activation = config.String("hidden_activation", "gelu_pytorch_tanh");
  config.Require(
      activation == "gelu_pytorch_tanh",
      fmt::format("hidden_activation {}: only gelu_pytorch_tanh is supported", activation));
  return {.hidden_size = c.hidden_size,
          .ffn_size = config.Int("intermediate_size", 1, kMaxSize),
          .activation = {.kind = kernels::ActivationKind::kGeluTanh}};
}

Result<std::unique_ptr<LoadableModel>> MakeGemma3(const boost::json::object& json,
                                                  const BuildOptions& options) {
  const boost::json::object text = TextConfig(json, kDefaults);
  ConfigReader config(text, "config.json");
  DecoderConfig c = ReadDecoderConfig(config, "Gemma3ForCausalLM");
  c.norm_style = kernels::NormStyle::kScaleOnePlus;
  c.embedding_scale = RoundToBf16(std::sqrt(static_cast<float>(c.hidden_size)));
  c.ignored_prefixes = VisionPrefixes();
  AttentionConfig attention = ReadGemmaAttention(config, c);
  const auto global =
      std::make_shared<Rope>(ReadGlobalRope(config, attention.head_dim, c.max_positions));
  const auto local =
      std::make_shared<Rope>(ReadLocalRope(config, attention.head_dim, c.max_positions));
  const FeedForwardConfig ffn = ReadGemmaFeedForward(config, c);
  const std::vector<int32_t> windows = ReadWindows(config, c.layers);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.ffn_size));

  std::vector<Sublayer> sublayers;
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string prefix = fmt::format("model.layers.{}.", l);
    attention.window = windows[l];
    attention.rope = windows[l] > 0 ? local : global;
    sublayers.push_back({prefix + "input_layernorm.weight",
                         std::make_unique<Attention>(attention, prefix + "self_attn", options.tp),
                         prefix + "post_attention_layernorm.weight"});
    sublayers.push_back({prefix + "pre_feedforward_layernorm.weight",
                         std::make_unique<FeedForward>(ffn, prefix + "mlp", options.tp),
                         prefix + "post_feedforward_layernorm.weight"});
  }
  return std::make_unique<Decoder>(c, std::move(sublayers), options);
}

const Registration kRegistration(
    {.architectures = {"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"},
     .make = &MakeGemma3,
     .tiny_configs = {
         R"({"architectures": ["Gemma3ForCausalLM"], "hidden_size": 96, "intermediate_size": 160,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 40, "vocab_size": 263,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "query_pre_attn_scalar": 24, "sliding_window": 29,
    "sliding_window_pattern": 3})"}});

}  // namespace
}  // namespace nibble::models
