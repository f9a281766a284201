// Qwen2 and Qwen2.5, dense: Llama with biases on q, k and v, and an optional window on the upper
// layers. Source: transformers' Qwen2ForCausalLM.
#include <memory>

#include "models/layers/decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeQwen2(const boost::json::object& json,
                                                 const BuildOptions& options) {
  ConfigReader config(json, "config.json");
  const DecoderConfig c = ReadDecoderConfig(config, "Qwen2ForCausalLM");
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.rope = std::make_shared<Rope>(
      ReadRopeConfig(config, attention.head_dim, c.max_positions, 1000000.0));
  attention.qkv_bias = Bias::kRequired;
  const FeedForwardConfig ffn = ReadFeedForwardConfig(config, c);
  const std::vector<int32_t> windows = ReadQwenWindows(config, c.layers);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.ffn_size));
  return std::make_unique<Decoder>(c, MakeDenseLayers(c, {attention, windows, ffn}, options),
                                   options);
}

const Registration kRegistration({.architectures = {"Qwen2ForCausalLM"},
                                  .make = &MakeQwen2,
                                  .tiny_configs = {
                                      R"({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 128,
    "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 1,
    "vocab_size": 283, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "use_sliding_window": true, "sliding_window": 41, "max_window_layers": 1, "tie_word_embeddings": true})"}});

}  // namespace
}  // namespace nibble::models
