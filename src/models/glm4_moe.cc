// GLM-4.5, 4.6 and 4.7 (Air included): grouped-query attention of which half a head turns,
// DeepSeek-V3's experts after the first dense layers, an MTP module behind the last one. Source:
// transformers' Glm4MoeForCausalLM.
#include <memory>

#include "models/layers/deepseek_moe.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeGlm4Moe(const boost::json::object& json,
                                                   const BuildOptions& options) {
  const boost::json::object fields = TextConfig(json, R"({"partial_rotary_factor": 0.5})");
  ConfigReader config(fields, "config.json");
  DecoderConfig c = ReadDecoderConfig(config, "Glm4MoeForCausalLM");
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.qk_norm = config.Bool("use_qk_norm", false);
  if (config.Bool("attention_bias", false)) attention.qkv_bias = Bias::kRequired;
  attention.rope = std::make_shared<Rope>(
      ReadRopeConfig(config, ReadRotaryDim(config, attention.head_dim), c.max_positions, 10000.0));
  DeepseekFeedForward ffn = ReadDeepseekFeedForward(config, c);
  ReadV3Routing(config, &ffn.moe);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.dense.ffn_size));
  NIBBLE_TRY(ffn.CheckShares(options.tp));
  const auto make_attention = [&](int64_t, const std::string& prefix) {
    return std::make_unique<Attention>(attention, prefix + ".self_attn", options.tp);
  };
  const auto feed_forward = [&](int64_t layer, const std::string& prefix) {
    return ffn.Make(layer, prefix, options.tp);
  };
  std::optional<DraftHead> draft =
      MakeDeepseekDraft(config, options, make_attention, feed_forward, &c);
  NIBBLE_TRY(config.status());
  return std::make_unique<Decoder>(c, MakePreNormLayers(c, make_attention, feed_forward), options,
                                   std::move(draft));
}

const Registration kRegistration(
    {.architectures = {"Glm4MoeForCausalLM"},
     .make = &MakeGlm4Moe,
     .tiny_configs = {
         // As GLM-4.5: norms and biases, a dense layer first.
         R"({"architectures": ["Glm4MoeForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 24, "attention_bias": true, "use_qk_norm": true, "partial_rotary_factor": 0.5, "n_routed_experts": 10,
    "n_shared_experts": 1, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "norm_topk_prob": true,
    "routed_scaling_factor": 1.5, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "vocab_size": 277,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1000000})"}});

}  // namespace
}  // namespace nibble::models
