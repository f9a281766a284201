// Qwen3.5 and Qwen3.6, dense and with experts: Qwen3-Next's layers with their projections stored
// apart, inside a multimodal wrapper, of which this is the text model. Its rotary positions have
// three parts, which are equal for text. Source: transformers' Qwen3_5ForConditionalGeneration and
// Qwen3_5MoeForConditionalGeneration.
#include <memory>
#include <string>

#include "models/layers/qwen_hybrid.h"

namespace nibble::models {
namespace {

Result<std::unique_ptr<LoadableModel>> MakeQwen35(const boost::json::object& json,
                                                  const BuildOptions& options,
                                                  std::string architecture, bool experts) {
  const boost::json::object text = TextConfig(json, kQwenHybridDefaults);
  ConfigReader config(text, "config.json");
  QwenHybridConfig c = ReadQwenHybrid(config, std::move(architecture));
  if (experts) {
    c.moe = ReadQwenMoe(config, c.decoder);
    c.sparse.assign(c.decoder.layers, true);
  } else {
    c.ffn = ReadFeedForwardConfig(config, c.decoder);
  }
  const std::string gate = config.String("output_gate_type", "swish");
  config.Require(gate == "swish" || gate == "silu" || gate == "sigmoid",
                 fmt::format("output_gate_type {}: expected swish, silu or sigmoid", gate));
  c.delta_net.sigmoid_gate = gate == "sigmoid";
  c.mtp = config.Int("mtp_num_hidden_layers", 0, 64, 1) > 0 &&
          !config.Bool("mtp_use_dedicated_embeddings", false);
  c.decoder.ignored_prefixes = VisionPrefixes();
  NIBBLE_TRY(config.status());
  return MakeQwenHybrid(c, options);
}

Result<std::unique_ptr<LoadableModel>> MakeDense(const boost::json::object& json,
                                                 const BuildOptions& options) {
  return MakeQwen35(json, options, "Qwen3_5ForConditionalGeneration", false);
}

Result<std::unique_ptr<LoadableModel>> MakeSparse(const boost::json::object& json,
                                                  const BuildOptions& options) {
  return MakeQwen35(json, options, "Qwen3_5MoeForConditionalGeneration", true);
}

const Registration kDense(
    {.architectures = {"Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"},
     .make = &MakeDense,
     .tiny_configs = {
         R"({"architectures": ["Qwen3_5ForConditionalGeneration"], "vocab_size": 223,
    "tie_word_embeddings": true, "text_config": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "layer_types": ["full_attention", "linear_attention"], "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 223, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "attn_output_gate": true, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32,
    "linear_value_head_dim": 24, "linear_conv_kernel_dim": 4, "mtp_num_hidden_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25,
                        "mrope_interleaved": true, "mrope_section": [2, 1, 1]}}})"}});

const Registration kSparse(
    {.architectures = {"Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"},
     .make = &MakeSparse,
     .tiny_configs = {
         R"({"architectures": ["Qwen3_5MoeForConditionalGeneration"], "vocab_size": 199,
    "tie_word_embeddings": false, "text_config": {"hidden_size": 48, "num_hidden_layers": 2,
    "full_attention_interval": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": 199, "max_position_embeddings": 512, "output_gate_type": "sigmoid", "linear_num_key_heads": 2,
    "linear_num_value_heads": 8, "linear_key_head_dim": 16, "linear_value_head_dim": 20, "linear_conv_kernel_dim": 4,
    "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.5,
                        "mrope_interleaved": true, "mrope_section": [2, 2, 2]}}})"}});

}  // namespace
}  // namespace nibble::models
