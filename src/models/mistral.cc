// Mistral and Ministral: Llama with an optional sliding window and a head_dim of its own.
// Source: transformers' MistralForCausalLM. With a window W, token i sees j with i - W < j <= i.
#include <memory>

#include "models/layers/decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeMistral(const boost::json::object& json,
                                                   const BuildOptions& options) {
  ConfigReader config(json, "config.json");
  const DecoderConfig c = ReadDecoderConfig(config, "MistralForCausalLM");
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.rope =
      std::make_shared<Rope>(ReadRopeConfig(config, attention.head_dim, c.max_positions, 10000.0));
  const FeedForwardConfig ffn = ReadFeedForwardConfig(config, c);
  const auto window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30, 0));
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.ffn_size));
  const std::vector<int32_t> windows(c.layers, window);
  return std::make_unique<Decoder>(c, MakeDenseLayers(c, {attention, windows, ffn}, options),
                                   options);
}

const Registration kRegistration(
    {.architectures = {"MistralForCausalLM"},
     .make = &MakeMistral,
     .tiny_configs = {R"({"architectures": ["MistralForCausalLM"], "hidden_size": 96,
    "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 331, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
    "sliding_window": 37, "tie_word_embeddings": false})"}});

}  // namespace
}  // namespace nibble::models
