// Mistral and Ministral: Llama with an optional sliding window and a head_dim of its own.
// Source: transformers' MistralForCausalLM. With a window W, token i sees j with i - W < j <= i.
#include <memory>

#include "models/layers/dense_decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeMistral(const boost::json::object& json) {
  ConfigReader config(json, "config.json");
  DenseDecoderConfig c = ReadDenseDecoderConfig(config, "MistralForCausalLM", {});
  const auto window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30, 0));
  c.layer_window.assign(c.layers, window);
  NIBBLE_TRY(config.status());
  return std::make_unique<DenseDecoder>(std::move(c));
}

const Registration kRegistration(
    {.architectures = {"MistralForCausalLM"},
     .make = &MakeMistral,
     .tiny_configs = {R"({"architectures": ["MistralForCausalLM"], "hidden_size": 96,
    "intermediate_size": 144, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 331, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
    "sliding_window": 37, "tie_word_embeddings": false})"}});

}  // namespace
}  // namespace nibble::models
