// Llama 2, 3.x, SmolLM2, TinyLlama and their kin.
// Source: transformers' LlamaForCausalLM.
#include <memory>

#include "models/layers/decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeLlama(const boost::json::object& json,
                                                 const BuildOptions& options) {
  ConfigReader config(json, "config.json");
  DecoderConfig c = ReadDecoderConfig(config, "LlamaForCausalLM");
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.rope =
      std::make_shared<Rope>(ReadRopeConfig(config, attention.head_dim, c.max_positions, 10000.0));
  if (config.Bool("attention_bias", false)) {
    attention.qkv_bias = Bias::kRequired;
    attention.output_bias = Bias::kRequired;
  }
  const FeedForwardConfig ffn = ReadFeedForwardConfig(config, c);
  config.Require(!config.Bool("rope_interleaved", false), "rope_interleaved true is not supported");
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.ffn_size));
  return std::make_unique<Decoder>(
      c, MakeDenseLayers(c, {.attention = attention, .ffn = ffn}, options), options);
}

const Registration kRegistration({.architectures = {"LlamaForCausalLM"},
                                  .make = &MakeLlama,
                                  .tiny_configs = {
                                      // Odd sizes, grouped heads, llama3 frequencies, untied head.
                                      R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 96,
    "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 48, "vocab_size": 307, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64}, "tie_word_embeddings": false})",
                                      // Tied head, one KV head per query head, biases.
                                      R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 259,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "attention_bias": true})"}});

}  // namespace
}  // namespace nibble::models
