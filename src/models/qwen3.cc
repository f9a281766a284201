// Qwen3, dense, and the text part of Qwen3-VL: RMS norms on every head of q and k before the
// rotation, no biases, head_dim of its own. Qwen3-VL's three positions per token are equal for
// text, which leaves plain RoPE. Sources: transformers' Qwen3ForCausalLM,
// Qwen3VLForConditionalGeneration.
#include <memory>

#include "models/layers/decoder.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeQwen3(const boost::json::object& json,
                                                 const BuildOptions& options) {
  const boost::json::object text = TextConfig(json);
  ConfigReader config(text, "config.json");
  DecoderConfig c = ReadDecoderConfig(config, "Qwen3ForCausalLM");
  c.ignored_prefixes = VisionPrefixes();
  AttentionConfig attention = ReadAttentionConfig(config, c, 128);
  attention.qk_norm = true;
  attention.rope = std::make_shared<Rope>(
      ReadRopeConfig(config, attention.head_dim, c.max_positions, 1000000.0));
  if (config.Bool("attention_bias", false)) {
    attention.qkv_bias = Bias::kRequired;
    attention.output_bias = Bias::kRequired;
  }
  const FeedForwardConfig ffn = ReadFeedForwardConfig(config, c);
  const std::vector<int32_t> windows = ReadQwenWindows(config, c.layers);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.ffn_size));
  return std::make_unique<Decoder>(c, MakeDenseLayers(c, {attention, windows, ffn}, options),
                                   options);
}

const Registration kRegistration({.architectures = {"Qwen3ForCausalLM",
                                                    "Qwen3VLForConditionalGeneration"},
                                  .make = &MakeQwen3,
                                  .tiny_configs = {
                                      R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 96,
    "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 48, "vocab_size": 293, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "tie_word_embeddings": true})"}});

}  // namespace
}  // namespace nibble::models
