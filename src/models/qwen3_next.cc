// Qwen3-Next: Gated DeltaNet with full attention in every fourth layer, experts throughout, norms
// whose weights are stored around zero, an MTP module. Source: transformers' Qwen3NextForCausalLM;
// the module from vLLM's description, as transformers has none.
#include <algorithm>
#include <memory>

#include "models/layers/qwen_hybrid.h"

namespace nibble::models {
namespace {

// decoder_sparse_step and mlp_only_layers leave some layers a plain feed-forward block.
std::vector<bool> ReadSparseLayers(ConfigReader& config, int64_t layers) {
  const int64_t step = config.Int("decoder_sparse_step", 1, kMaxLayers, 1);
  const std::vector<int64_t> dense = config.Ints("mlp_only_layers", 0, kMaxLayers);
  std::vector<bool> sparse;
  for (int64_t l = 0; l < layers; ++l)
    sparse.push_back((l + 1) % step == 0 && std::ranges::find(dense, l) == dense.end());
  return sparse;
}

Result<std::unique_ptr<LoadableModel>> MakeQwen3Next(const boost::json::object& json,
                                                     const BuildOptions& options) {
  const boost::json::object text = TextConfig(json, kQwenHybridDefaults);
  ConfigReader config(text, "config.json");
  QwenHybridConfig c = ReadQwenHybrid(config, "Qwen3NextForCausalLM");
  c.delta_net.grouped_projections = true;
  if (config.Int("num_experts", 0, 1 << 16, 0) > 0) {
    c.moe = ReadQwenMoe(config, c.decoder);
    c.sparse = ReadSparseLayers(config, c.decoder.layers);
  }
  // Published files give intermediate_size though no layer uses it.
  if (std::ranges::find(c.sparse, false) != c.sparse.end())
    c.ffn = ReadFeedForwardConfig(config, c.decoder);
  NIBBLE_TRY(config.status());
  return MakeQwenHybrid(c, options);
}

const Registration kRegistration(
    {.architectures = {"Qwen3NextForCausalLM"},
     .make = &MakeQwen3Next,
     .tiny_configs = {// Three value heads per key head, experts everywhere.
                      R"({"architectures": ["Qwen3NextForCausalLM"], "hidden_size": 48,
    "intermediate_size": 96, "num_hidden_layers": 2, "full_attention_interval": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "partial_rotary_factor": 0.25, "vocab_size": 211,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000000.0, "linear_num_key_heads": 2,
    "linear_num_value_heads": 6, "linear_key_head_dim": 24, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4,
    "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 32,
    "norm_topk_prob": true, "tie_word_embeddings": false})",
                      // Dense layers between, types by name, another width of the
                      // convolution.
                      R"({"architectures": ["Qwen3NextForCausalLM"], "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
    "layer_types": ["full_attention", "linear_attention", "linear_attention"],
    "head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.5},
    "vocab_size": 197, "max_position_embeddings": 512, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 48, "linear_conv_kernel_dim": 3, "decoder_sparse_step": 2,
    "mlp_only_layers": [0], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 64, "norm_topk_prob": false, "tie_word_embeddings": true})"}});

}  // namespace
}  // namespace nibble::models
