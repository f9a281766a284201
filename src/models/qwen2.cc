// Qwen2 and Qwen2.5, dense: Llama with biases on q, k and v, and an optional window on the upper
// layers. Source: transformers' Qwen2ForCausalLM.
#include <memory>

#include "models/layers/dense_decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeQwen2(const boost::json::object& json) {
  ConfigReader config(json, "config.json");
  DenseDecoderConfig c =
      ReadDenseDecoderConfig(config, "Qwen2ForCausalLM", {.rope_theta = 1000000.0});
  c.attention.qkv_bias = Bias::kRequired;
  ReadQwenWindows(config, &c);
  NIBBLE_TRY(config.status());
  return std::make_unique<DenseDecoder>(std::move(c));
}

const Registration kRegistration({.architectures = {"Qwen2ForCausalLM"},
                                  .make = &MakeQwen2,
                                  .tiny_configs = {
                                      R"({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 112,
    "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 7, "num_key_value_heads": 1,
    "vocab_size": 283, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "use_sliding_window": true, "sliding_window": 41, "max_window_layers": 1, "tie_word_embeddings": true})"}});

}  // namespace
}  // namespace nibble::models
