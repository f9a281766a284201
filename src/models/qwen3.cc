// Qwen3, dense: RMS norms on every head of q and k before the rotation, no biases, head_dim of its
// own. Source: transformers' Qwen3ForCausalLM.
#include <memory>

#include "models/layers/dense_decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeQwen3(const boost::json::object& json) {
  ConfigReader config(json, "config.json");
  DenseDecoderConfig c = ReadDenseDecoderConfig(config, "Qwen3ForCausalLM",
                                                {.rope_theta = 1000000.0, .head_dim = 128});
  c.attention.qk_norm = true;
  if (config.Bool("attention_bias", false)) {
    c.attention.qkv_bias = Bias::kRequired;
    c.attention.output_bias = Bias::kRequired;
  }
  ReadQwenWindows(config, &c);
  NIBBLE_TRY(config.status());
  return std::make_unique<DenseDecoder>(std::move(c));
}

const Registration kRegistration({.architectures = {"Qwen3ForCausalLM"},
                                  .make = &MakeQwen3,
                                  .tiny_configs = {
                                      R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 96,
    "intermediate_size": 144, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3,
    "head_dim": 48, "vocab_size": 293, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "tie_word_embeddings": true})"}});

}  // namespace
}  // namespace nibble::models
