// Mistral and Ministral: Llama with an optional sliding window and a head_dim of its own; Ministral
// 3 lets queries grow with the position. Sources: transformers' MistralForCausalLM,
// MinistralForCausalLM and Ministral3ForCausalLM. With a window W, token i sees j with
// i - W < j <= i.
#include <memory>

#include "models/layers/decoder.h"

namespace nibble::models {
namespace {

// llama_4_scaling_beta among the rope's parameters; null without it.
std::shared_ptr<QueryScale> ReadQueryScale(ConfigReader& config) {
  auto parameters = config.Object("rope_parameters");
  if (!parameters || !parameters->Has("llama_4_scaling_beta")) return nullptr;
  const double beta = parameters->Float("llama_4_scaling_beta", 0.0, 1e3);
  const int64_t interval = parameters->Int("original_max_position_embeddings", 1, int64_t{1} << 31);
  config.Adopt(*parameters);
  return std::make_shared<QueryScale>(beta, interval, 0);
}

Result<std::unique_ptr<LoadableModel>> MakeMistral(const boost::json::object& json,
                                                   const BuildOptions& options) {
  const boost::json::object text = TextConfig(json);
  ConfigReader config(text, "config.json");
  DecoderConfig c = ReadDecoderConfig(config, "MistralForCausalLM");
  c.ignored_prefixes = VisionPrefixes();
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.rope =
      std::make_shared<Rope>(ReadRopeConfig(config, attention.head_dim, c.max_positions, 10000.0));
  attention.query_scale = ReadQueryScale(config);
  const FeedForwardConfig ffn = ReadFeedForwardConfig(config, c);
  const auto window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30, 0));
  std::vector<int32_t> windows = ReadLayerWindows(config, c.layers, window);
  if (windows.empty()) windows.assign(c.layers, window);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.ffn_size));
  return std::make_unique<Decoder>(c, MakeDenseLayers(c, {attention, windows, ffn}, options),
                                   options);
}

const Registration kRegistration(
    {.architectures = {"MistralForCausalLM", "MinistralForCausalLM", "Ministral3ForCausalLM",
                       "Mistral3ForConditionalGeneration"},
     .make = &MakeMistral,
     .tiny_configs = {
         R"({"architectures": ["MistralForCausalLM"], "hidden_size": 96,
    "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 331, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
    "sliding_window": 37, "tie_word_embeddings": false})",
         // Queries grow every 32 tokens, and one layer of two has a window.
         R"({"architectures": ["Ministral3ForCausalLM"], "hidden_size": 96, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 227,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "yarn", "type": "yarn",
    "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4},
    "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 37,
    "tie_word_embeddings": true})"}});

}  // namespace
}  // namespace nibble::models
