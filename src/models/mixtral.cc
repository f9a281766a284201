// Mixtral (8x7B, 8x22B): Mistral's attention, experts in every layer.
// Source: transformers' MixtralForCausalLM.
#include <memory>

#include "models/layers/decoder.h"
#include "models/layers/moe.h"

namespace nibble::models {
namespace {

MoeConfig ReadExperts(ConfigReader& config, const DecoderConfig& decoder) {
  MoeConfig moe;
  moe.hidden_size = decoder.hidden_size;
  moe.expert_size = config.Int("intermediate_size", 1, kMaxSize);
  moe.routing.experts = static_cast<int32_t>(config.Int("num_local_experts", 1, 1 << 16, 8));
  moe.routing.top_k = static_cast<int32_t>(config.Int("num_experts_per_tok", 1, 1 << 16, 2));
  const std::string activation = config.String("hidden_act", "silu");
  config.Require(activation == "silu",
                 fmt::format("hidden_act {}: only silu is supported", activation));
  RequireRouting(config, moe.routing);
  return moe;
}

Result<std::unique_ptr<LoadableModel>> MakeMixtral(const boost::json::object& json,
                                                   const BuildOptions& options) {
  ConfigReader config(json, "config.json");
  const DecoderConfig c = ReadDecoderConfig(config, "MixtralForCausalLM");
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.rope = std::make_shared<Rope>(
      ReadRopeConfig(config, attention.head_dim, c.max_positions, 1000000.0));
  attention.window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30, 0));
  const MoeConfig moe = ReadExperts(config, c);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, 0));
  NIBBLE_TRY(CheckShares(options.tp, moe));
  const auto make_attention = [&](int64_t, const std::string& prefix) {
    return std::make_unique<Attention>(attention, prefix + ".self_attn", options.tp);
  };
  const auto make_experts = [&](int64_t, const std::string& prefix) {
    return std::make_unique<Moe>(moe, prefix + ".block_sparse_moe", options.tp);
  };
  return std::make_unique<Decoder>(c, MakePreNormLayers(c, make_attention, make_experts), options);
}

const Registration kRegistration(
    {.architectures = {"MixtralForCausalLM"},
     .make = &MakeMixtral,
     .tiny_configs = {
         R"({"architectures": ["MixtralForCausalLM"], "hidden_size": 80,
    "intermediate_size": 48, "num_local_experts": 6, "num_experts_per_tok": 2, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 211,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": 37,
    "tie_word_embeddings": false})"}});

}  // namespace
}  // namespace nibble::models
