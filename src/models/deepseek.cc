// DeepSeek-V2, V3, R1, Kimi-K2 (the text of K2.5, too) and GLM-4.7-Flash: latent attention; experts
// after the first dense layers; an MTP module behind the last one. Sources: transformers'
// DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, Glm4MoeLiteForCausalLM; DeepSeek-AI 2024,
// "DeepSeek-V3 Technical Report", section 2.2 for the MTP module.
#include <memory>

#include "models/layers/deepseek_moe.h"
#include "models/layers/mla_attention.h"

namespace nibble::models {
namespace {

// As the config spells it.
std::string ArchitectureName(const boost::json::object& config) {
  for (const boost::json::value& name : config.at("architectures").get_array())
    if (name.is_string()) return std::string(name.get_string());
  return "";
}

using ReadRouting = void (*)(ConfigReader& config, MoeConfig* moe);

Result<std::unique_ptr<LoadableModel>> Make(const boost::json::object& json,
                                            const BuildOptions& options, ReadRouting read_routing) {
  const boost::json::object fields = TextConfig(json);  // Kimi-K2.5 wraps its text model
  ConfigReader config(fields, "config.json");
  DecoderConfig c = ReadDecoderConfig(config, ArchitectureName(json));
  c.ignored_prefixes = VisionPrefixes();
  const MlaConfig mla = ReadMlaConfig(config, c.hidden_size, c.max_positions);
  DeepseekFeedForward ffn = ReadDeepseekFeedForward(config, c);
  read_routing(config, &ffn.moe);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(TensorParallel::CheckDivides(options.tp.size, mla.heads, "num_attention_heads"));
  NIBBLE_TRY(ffn.CheckShares(options.tp));
  const auto attention = [&](int64_t, const std::string& prefix) {
    return std::make_unique<MlaAttention>(mla, prefix + ".self_attn", options.tp);
  };
  const auto feed_forward = [&](int64_t layer, const std::string& prefix) {
    return ffn.Make(layer, prefix, options.tp);
  };
  std::optional<DraftHead> draft = MakeDeepseekDraft(config, options, attention, feed_forward, &c);
  NIBBLE_TRY(config.status());
  return std::make_unique<Decoder>(c, MakePreNormLayers(c, attention, feed_forward), options,
                                   std::move(draft));
}

Result<std::unique_ptr<LoadableModel>> MakeV2(const boost::json::object& json,
                                              const BuildOptions& options) {
  return Make(json, options, &ReadV2Routing);
}

Result<std::unique_ptr<LoadableModel>> MakeV3(const boost::json::object& json,
                                              const BuildOptions& options) {
  return Make(json, options, &ReadV3Routing);
}

const Registration kV2(
    {.architectures = {"DeepseekV2ForCausalLM"},
     .make = &MakeV2,
     .tiny_configs = {
         // As V2: queries through a latent, groups, YaRN beyond 64 tokens.
         R"({"architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "q_lora_rank": 48,
    "kv_lora_rank": 48, "qk_nope_head_dim": 20, "qk_rope_head_dim": 12, "v_head_dim": 24, "n_routed_experts": 12,
    "n_shared_experts": 2, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "topk_method": "group_limited_greedy", "norm_topk_prob": false, "routed_scaling_factor": 2.0,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "vocab_size": 259, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32,
    "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 64}})"}});

const Registration kV3(
    {.architectures = {"DeepseekV3ForCausalLM", "KimiK2ForCausalLM",
                       "KimiK25ForConditionalGeneration", "Glm4MoeLiteForCausalLM"},
     .make = &MakeV3,
     .tiny_configs = {
         // As V3, its MTP module included.
         R"({"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 6, "q_lora_rank": 48,
    "kv_lora_rank": 32, "qk_nope_head_dim": 24, "qk_rope_head_dim": 12, "v_head_dim": 16, "n_routed_experts": 12,
    "n_shared_experts": 1, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "norm_topk_prob": true,
    "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "vocab_size": 307,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": {"type": "yarn",
    "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64}})",
         // Queries straight from the hidden state, plain positions, biases, no groups.
         R"({"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 48, "intermediate_size": 64,
    "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "q_lora_rank": null,
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 6,
    "num_experts_per_tok": 2, "first_k_dense_replace": 0, "moe_layer_freq": 2, "rope_interleave": false,
    "attention_bias": true, "vocab_size": 203, "max_position_embeddings": 512, "rms_norm_eps": 1e-6})"}});

}  // namespace
}  // namespace nibble::models
