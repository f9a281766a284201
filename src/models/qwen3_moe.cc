// Qwen3-MoE (30B-A3B, 235B-A22B, Coder) and the text part of Qwen3-VL-MoE: Qwen3's attention,
// experts in place of most feed-forward blocks. Sources: transformers' Qwen3MoeForCausalLM,
// Qwen3VLMoeForConditionalGeneration.
#include <algorithm>
#include <memory>

#include "models/layers/decoder.h"
#include "models/layers/moe.h"

namespace nibble::models {
namespace {

// Which layers have experts.
struct SparseLayers {
  std::vector<int64_t> dense;
  int64_t step = 1;

  bool Has(int64_t layer) const {
    return std::ranges::find(dense, layer) == dense.end() && (layer + 1) % step == 0;
  }
};

MoeConfig ReadExperts(ConfigReader& config, const DecoderConfig& decoder) {
  MoeConfig moe;
  moe.hidden_size = decoder.hidden_size;
  moe.expert_size = config.Int("moe_intermediate_size", 1, kMaxSize);
  const char* experts = config.Has("num_experts") ? "num_experts" : "num_local_experts";
  moe.routing.experts = static_cast<int32_t>(config.Int(experts, 1, 1 << 16));
  moe.routing.top_k = static_cast<int32_t>(config.Int("num_experts_per_tok", 1, 1 << 16));
  moe.routing.renormalize = config.Bool("norm_topk_prob", false);
  RequireRouting(config, moe.routing);
  return moe;
}

Result<std::unique_ptr<LoadableModel>> MakeQwen3Moe(const boost::json::object& json,
                                                    const BuildOptions& options) {
  const boost::json::object text = TextConfig(json);
  ConfigReader config(text, "config.json");
  DecoderConfig c = ReadDecoderConfig(config, "Qwen3MoeForCausalLM");
  c.ignored_prefixes = VisionPrefixes();
  AttentionConfig attention = ReadAttentionConfig(config, c);
  attention.qk_norm = true;
  attention.rope = std::make_shared<Rope>(
      ReadRopeConfig(config, attention.head_dim, c.max_positions, 1000000.0));
  if (config.Bool("attention_bias", false)) {
    attention.qkv_bias = Bias::kRequired;
    attention.output_bias = Bias::kRequired;
  }
  if (config.Bool("use_sliding_window", false))
    attention.window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30));
  const FeedForwardConfig ffn = ReadFeedForwardConfig(config, c);
  const MoeConfig moe = ReadExperts(config, c);
  const SparseLayers sparse = {config.Ints("mlp_only_layers", 0, kMaxLayers),
                               config.Int("decoder_sparse_step", 1, kMaxLayers, 1)};
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, attention, ffn.ffn_size));
  NIBBLE_TRY(CheckShares(options.tp, moe));
  const auto make_attention = [&](int64_t, const std::string& prefix) {
    return std::make_unique<Attention>(attention, prefix + ".self_attn", options.tp);
  };
  const auto make_feed_forward = [&](int64_t layer,
                                     const std::string& prefix) -> std::unique_ptr<Block> {
    if (sparse.Has(layer)) return std::make_unique<Moe>(moe, prefix + ".mlp", options.tp);
    return std::make_unique<FeedForward>(ffn, prefix + ".mlp", options.tp);
  };
  return std::make_unique<Decoder>(c, MakePreNormLayers(c, make_attention, make_feed_forward),
                                   options);
}

const Registration kRegistration(
    {.architectures = {"Qwen3MoeForCausalLM", "Qwen3VLMoeForConditionalGeneration"},
     .make = &MakeQwen3Moe,
     .tiny_configs = {// A dense layer among sparse ones.
                      R"({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 96,
    "intermediate_size": 160, "moe_intermediate_size": 48, "num_experts": 10, "num_experts_per_tok": 3,
    "norm_topk_prob": true, "mlp_only_layers": [1], "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 293, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "tie_word_embeddings": false})",
                      // Weights as the softmax gives them; every second layer.
                      R"({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 64,
    "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 2,
    "norm_topk_prob": false, "decoder_sparse_step": 2, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 259, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": true})"}});

}  // namespace
}  // namespace nibble::models
