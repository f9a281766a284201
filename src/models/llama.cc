// Llama 2, 3.x, SmolLM2, TinyLlama and their kin.
// Source: transformers' LlamaForCausalLM.
#include <memory>

#include "models/layers/dense_decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeLlama(const boost::json::object& json) {
  ConfigReader config(json, "config.json");
  DenseDecoderConfig c = ReadDenseDecoderConfig(config, "LlamaForCausalLM", {});
  if (config.Bool("attention_bias", false)) {
    c.attention.qkv_bias = Bias::kRequired;
    c.attention.output_bias = Bias::kRequired;
  }
  config.Require(!config.Bool("rope_interleaved", false), "rope_interleaved true is not supported");
  NIBBLE_TRY(config.status());
  return std::make_unique<DenseDecoder>(std::move(c));
}

const Registration kRegistration({.architectures = {"LlamaForCausalLM"},
                                  .make = &MakeLlama,
                                  .tiny_configs = {
                                      // Odd sizes, grouped heads, llama3 frequencies, untied head.
                                      R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 96,
    "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 24, "vocab_size": 307, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64}, "tie_word_embeddings": false})",
                                      // Tied head, one KV head per query head, biases.
                                      R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 259,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "attention_bias": true})"}});

}  // namespace
}  // namespace nibble::models
