// GLM-4, dense: half of each head turns, in neighbouring pairs; gate and up are stored as one; the
// 0414 releases (Glm4ForCausalLM) norm what a block adds as well, the first ones do not.
// Sources: transformers' GlmForCausalLM and Glm4ForCausalLM.
#include <memory>

#include "models/layers/decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> Make(const boost::json::object& json,
                                            const BuildOptions& options, std::string architecture,
                                            bool post_norms) {
  const boost::json::object fields =
      TextConfig(json, R"({"partial_rotary_factor": 0.5, "attention_bias": true})");
  ConfigReader config(fields, "config.json");
  const DecoderConfig c = ReadDecoderConfig(config, std::move(architecture));
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.pairs = kernels::RopePairs::kNeighbours;
  if (config.Bool("attention_bias", true)) attention.qkv_bias = Bias::kRequired;
  attention.rope = std::make_shared<Rope>(
      ReadRopeConfig(config, ReadRotaryDim(config, attention.head_dim), c.max_positions, 10000.0));
  FeedForwardConfig ffn = ReadFeedForwardConfig(config, c);
  ffn.fused_gate_up = true;
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.ffn_size));
  std::vector<Sublayer> layers = MakeDenseLayers(c, {.attention = attention, .ffn = ffn}, options);
  for (size_t i = 0; post_norms && i < layers.size(); ++i) {
    layers[i].post_norm =
        fmt::format("model.layers.{}.{}.weight", i / 2,
                    i % 2 == 0 ? "post_self_attn_layernorm" : "post_mlp_layernorm");
  }
  return std::make_unique<Decoder>(c, std::move(layers), options);
}

Result<std::unique_ptr<LoadableModel>> MakeGlm(const boost::json::object& json,
                                               const BuildOptions& options) {
  return Make(json, options, "GlmForCausalLM", false);
}

Result<std::unique_ptr<LoadableModel>> MakeGlm4(const boost::json::object& json,
                                                const BuildOptions& options) {
  return Make(json, options, "Glm4ForCausalLM", true);
}

const Registration kGlm({.architectures = {"GlmForCausalLM"},
                         .make = &MakeGlm,
                         .tiny_configs = {
                             R"({"architectures": ["GlmForCausalLM"], "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 211, "max_position_embeddings": 512, "rms_norm_eps": 1.5625e-7,
    "rope_theta": 10000, "tie_word_embeddings": false})"}});

const Registration kGlm4({.architectures = {"Glm4ForCausalLM"},
                          .make = &MakeGlm4,
                          .tiny_configs = {
                              R"({"architectures": ["Glm4ForCausalLM"], "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 24, "vocab_size": 263, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000,
    "attention_bias": true, "partial_rotary_factor": 0.5, "tie_word_embeddings": false})"}});

}  // namespace
}  // namespace nibble::models
