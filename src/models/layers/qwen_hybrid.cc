#include "models/layers/qwen_hybrid.h"

#include <algorithm>
#include <utility>

namespace nibble::models {
namespace {

std::vector<bool> ReadLayerTypes(ConfigReader& config, int64_t layers) {
  std::vector<bool> full;
  for (const std::string& type : config.Strings("layer_types")) {
    config.Require(
        type == "full_attention" || type == "linear_attention",
        fmt::format("layer_types holds {}: expected full_attention or linear_attention", type));
    full.push_back(type == "full_attention");
  }
  if (full.empty()) {
    const int64_t interval = config.Int("full_attention_interval", 1, kMaxLayers, 4);
    for (int64_t l = 0; l < layers; ++l) full.push_back((l + 1) % interval == 0);
  }
  config.Require(
      static_cast<int64_t>(full.size()) == layers,
      fmt::format("layer_types names {} layers, num_hidden_layers is {}", full.size(), layers));
  full.resize(layers);
  return full;
}

AttentionConfig ReadAttention(ConfigReader& config, const DecoderConfig& decoder) {
  AttentionConfig attention = ReadAttentionConfig(config, decoder, 256);
  attention.qk_norm = true;
  attention.output_gate = config.Bool("attn_output_gate", true);
  const int64_t rotary_dim = ReadRotaryDim(config, attention.head_dim);
  attention.rope =
      std::make_shared<Rope>(ReadRopeConfig(config, rotary_dim, decoder.max_positions, 10000.0));
  if (config.Bool("attention_bias", false)) {
    attention.qkv_bias = Bias::kRequired;
    attention.output_bias = Bias::kRequired;
  }
  return attention;
}

GatedDeltaNetConfig ReadDeltaNet(ConfigReader& config, const DecoderConfig& decoder) {
  GatedDeltaNetConfig net;
  net.hidden_size = decoder.hidden_size;
  net.norm_eps = decoder.norm_eps;
  net.k_heads = static_cast<int32_t>(config.Int("linear_num_key_heads", 1, 1 << 16));
  net.v_heads = static_cast<int32_t>(config.Int("linear_num_value_heads", 1, 1 << 16));
  net.k_dim = static_cast<int32_t>(config.Int("linear_key_head_dim", 1, kernels::kMaxDeltaKeyDim));
  net.v_dim = static_cast<int32_t>(config.Int("linear_value_head_dim", 1, 1 << 12));
  net.conv_width = static_cast<int32_t>(config.Int("linear_conv_kernel_dim", 2, 8));
  config.Require(net.v_heads % net.k_heads == 0,
                 fmt::format("linear_num_value_heads {} is not a multiple of "
                             "linear_num_key_heads {}",
                             net.v_heads, net.k_heads));
  return net;
}

Status CheckRanks(const TensorParallel& tp, const QwenHybridConfig& config) {
  if (!tp.active()) return {};
  NIBBLE_TRY(
      TensorParallel::CheckDivides(tp.size, config.delta_net.k_heads, "linear_num_key_heads"));
  if (config.moe) NIBBLE_TRY(CheckShares(tp, *config.moe));
  return CheckShares(tp, config.attention, config.ffn ? config.ffn->ffn_size : 0);
}

// One layer under `prefix`: "model.layers.3".
void AppendLayer(const QwenHybridConfig& config, const std::string& prefix, bool full, bool sparse,
                 const TensorParallel& tp, std::vector<Sublayer>* out) {
  std::unique_ptr<Block> mixer, ffn;
  if (full) {
    mixer = std::make_unique<Attention>(config.attention, prefix + ".self_attn", tp);
  } else {
    mixer = std::make_unique<GatedDeltaNet>(config.delta_net, prefix + ".linear_attn", tp);
  }
  if (sparse) {
    ffn = std::make_unique<Moe>(*config.moe, prefix + ".mlp", tp);
  } else {
    ffn = std::make_unique<FeedForward>(*config.ffn, prefix + ".mlp", tp);
  }
  out->push_back({prefix + ".input_layernorm.weight", std::move(mixer), ""});
  out->push_back({prefix + ".post_attention_layernorm.weight", std::move(ffn), ""});
}

DraftHead MakeDraftHead(const QwenHybridConfig& config, const TensorParallel& tp) {
  DraftHead draft = {.embedding_norm = "mtp.pre_fc_norm_embedding.weight",
                     .hidden_norm = "mtp.pre_fc_norm_hidden.weight",
                     .projection = "mtp.fc",
                     .final_norm = "mtp.norm.weight"};
  AppendLayer(config, "mtp.layers.0", true, config.moe.has_value(), tp, &draft.sublayers);
  return draft;
}

}  // namespace

QwenHybridConfig ReadQwenHybrid(ConfigReader& config, std::string architecture) {
  QwenHybridConfig hybrid;
  hybrid.decoder = ReadDecoderConfig(config, std::move(architecture));
  hybrid.decoder.norm_style = kernels::NormStyle::kScaleOnePlus;
  hybrid.full_attention = ReadLayerTypes(config, hybrid.decoder.layers);
  hybrid.attention = ReadAttention(config, hybrid.decoder);
  hybrid.delta_net = ReadDeltaNet(config, hybrid.decoder);
  hybrid.sparse.assign(hybrid.decoder.layers, false);
  return hybrid;
}

MoeConfig ReadQwenMoe(ConfigReader& config, const DecoderConfig& decoder) {
  MoeConfig moe;
  moe.hidden_size = decoder.hidden_size;
  moe.expert_size = config.Int("moe_intermediate_size", 1, kMaxSize);
  moe.routing.experts = static_cast<int32_t>(config.Int("num_experts", 1, 1 << 16));
  moe.routing.top_k = static_cast<int32_t>(config.Int("num_experts_per_tok", 1, 1 << 16));
  moe.routing.renormalize = config.Bool("norm_topk_prob", true);
  moe.shared_size = config.Int("shared_expert_intermediate_size", 0, kMaxSize);
  moe.shared_gate = "shared_expert_gate";
  RequireRouting(config, moe.routing);
  const std::string activation = config.String("hidden_act", "silu");
  config.Require(activation == "silu",
                 fmt::format("hidden_act {}: only silu is supported", activation));
  return moe;
}

Result<std::unique_ptr<LoadableModel>> MakeQwenHybrid(const QwenHybridConfig& config,
                                                      const BuildOptions& options) {
  NIBBLE_TRY(CheckRanks(options.tp, config));
  std::vector<Sublayer> sublayers;
  for (int64_t l = 0; l < config.decoder.layers; ++l) {
    AppendLayer(config, fmt::format("model.layers.{}", l), config.full_attention[l],
                config.sparse[l], options.tp, &sublayers);
  }
  DecoderConfig decoder = config.decoder;
  if (!options.draft || !config.mtp) {
    decoder.ignored_prefixes.push_back("mtp.");
    return std::make_unique<Decoder>(decoder, std::move(sublayers), options);
  }
  return std::make_unique<Decoder>(decoder, std::move(sublayers), options,
                                   MakeDraftHead(config, options.tp));
}

}  // namespace nibble::models
