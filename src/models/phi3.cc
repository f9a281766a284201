// Phi-3, Phi-3.5 and Phi-4: Llama with fused projections, a rotation of part of each head, an
// optional window, and LongRoPE. Source: transformers' Phi3ForCausalLM.
#include <memory>

#include "models/layers/decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakePhi3(const boost::json::object& json,
                                                const BuildOptions& options) {
  ConfigReader config(json, "config.json");
  const DecoderConfig c = ReadDecoderConfig(config, "Phi3ForCausalLM");
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.fused_qkv = true;
  attention.rope = std::make_shared<Rope>(
      ReadRopeConfig(config, ReadRotaryDim(config, attention.head_dim), c.max_positions, 10000.0));
  FeedForwardConfig ffn = ReadFeedForwardConfig(config, c);
  ffn.fused_gate_up = true;
  const auto window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30, 0));
  config.Require(!config.Bool("attention_bias", false), "attention_bias true is not supported");
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.ffn_size));
  const std::vector<int32_t> windows(c.layers, window);
  return std::make_unique<Decoder>(c, MakeDenseLayers(c, {attention, windows, ffn}, options),
                                   options);
}

const Registration kRegistration(
    {.architectures = {"Phi3ForCausalLM"},
     .make = &MakePhi3,
     .tiny_configs = {
         // Phi-4-mini: grouped heads, three quarters of a head turn, long frequencies beyond 64.
         R"({"architectures": ["Phi3ForCausalLM"], "hidden_size": 96, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 211,
    "max_position_embeddings": 512, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": {"type": "longrope",
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.3, 1.6], "long_factor": [1.1, 1.4, 2.1, 3.3, 6.0, 8.0]},
    "sliding_window": 262144, "tie_word_embeddings": true})",
         // Phi-3-mini-4k: a window, plain frequencies.
         R"({"architectures": ["Phi3ForCausalLM"], "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 197, "max_position_embeddings": 512,
    "original_max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
    "sliding_window": 43, "tie_word_embeddings": false})"}});

}  // namespace
}  // namespace nibble::models
