// Llama 4 (Scout, Maverick), the text model: layers with rotated neighbours that see their chunk of
// the context alone, between layers without positions that see all of it; experts in some layers,
// one per token, its weight on the expert's input. Source: transformers' Llama4ForCausalLM.
#include <algorithm>
#include <memory>

#include "models/layers/decoder.h"
#include "models/layers/moe.h"

namespace nibble::models {
namespace {

// What published files may leave out.
constexpr std::string_view kDefaults = R"({"head_dim": 128, "rms_norm_eps": 1e-5,
    "attn_temperature_tuning": true})";

// Which layers have what. Layers without a rope have no positions.
struct Layout {
  std::vector<bool> rope;
  std::vector<bool> chunked;
  std::vector<bool> experts;
};

// no_rope_layers says, by its values, which layers do have a rope; else all but every fourth.
std::vector<bool> ReadRopeLayers(ConfigReader& config, int64_t layers) {
  std::vector<bool> rope;
  for (const int64_t flag : config.Ints("no_rope_layers", 0, 1)) rope.push_back(flag != 0);
  const int64_t interval = config.Int("no_rope_layer_interval", 1, kMaxLayers, 4);
  if (rope.empty()) {
    for (int64_t l = 0; l < layers; ++l) rope.push_back((l + 1) % interval != 0);
  }
  config.Require(
      static_cast<int64_t>(rope.size()) >= layers,
      fmt::format("no_rope_layers names {} layers, num_hidden_layers is {}", rope.size(), layers));
  return rope;
}

std::vector<bool> ReadExpertLayers(ConfigReader& config, int64_t layers) {
  std::vector<bool> experts(layers, false);
  if (config.Has("moe_layers")) {
    for (const int64_t l : config.Ints("moe_layers", 0, layers - 1)) experts[l] = true;
    return experts;
  }
  const int64_t step = config.Int("interleave_moe_layer_step", 1, kMaxLayers, 1);
  for (int64_t l = step - 1; l < layers; l += step) experts[l] = true;
  return experts;
}

Layout ReadLayout(ConfigReader& config, int64_t layers) {
  Layout layout = {.rope = ReadRopeLayers(config, layers),
                   .chunked = {},
                   .experts = ReadExpertLayers(config, layers)};
  layout.chunked = layout.rope;
  const std::vector<std::string> types = config.Strings("layer_types");
  if (types.empty()) return layout;
  config.Require(
      static_cast<int64_t>(types.size()) == layers,
      fmt::format("layer_types names {} layers, num_hidden_layers is {}", types.size(), layers));
  layout.chunked.assign(std::max<int64_t>(layers, types.size()), false);
  for (size_t l = 0; l < types.size(); ++l) layout.chunked[l] = types[l] == "chunked_attention";
  return layout;
}

// Early files count attn_temperature_tuning instead of switching it.
bool HasTemperature(const boost::json::object& text, ConfigReader& config) {
  const boost::json::value& value = text.at("attn_temperature_tuning");
  if (const int64_t* number = value.if_int64()) return *number != 0;
  return config.Bool("attn_temperature_tuning", true);
}

struct AttentionKinds {
  AttentionConfig rope;
  AttentionConfig no_rope;
  int32_t chunk = 0;
};

AttentionKinds ReadAttentionKinds(ConfigReader& config, const DecoderConfig& c, bool temperature) {
  AttentionConfig base = ReadAttentionConfig(config, c);
  if (config.Bool("attention_bias", false)) {
    base.qkv_bias = Bias::kRequired;
    base.output_bias = Bias::kRequired;
  }
  AttentionKinds kinds = {.rope = base, .no_rope = base};
  kinds.rope.rope =
      std::make_shared<Rope>(ReadRopeConfig(config, base.head_dim, c.max_positions, 500000.0));
  kinds.rope.pairs = kernels::RopePairs::kNeighbours;
  kinds.rope.qk_norm = config.Bool("use_qk_norm", true);
  kinds.rope.qk_norm_weights = false;
  kinds.rope.norm_after_rotation = true;
  const double strength = config.Float("attn_scale", 0.0, 1e3, 0.1);
  const int64_t interval = config.Int("floor_scale", 1, int64_t{1} << 40, 8192);
  if (temperature) kinds.no_rope.query_scale = std::make_shared<QueryScale>(strength, interval, 1);
  kinds.chunk = static_cast<int32_t>(config.Int("attention_chunk_size", 1, 1 << 30, 0));
  return kinds;
}

MoeConfig ReadExperts(ConfigReader& config, const DecoderConfig& c) {
  MoeConfig moe;
  moe.hidden_size = c.hidden_size;
  moe.expert_size = config.Int("intermediate_size", 1, kMaxSize);
  moe.shared_size = moe.expert_size;
  moe.router = "router";
  moe.routing.experts = static_cast<int32_t>(config.Int("num_local_experts", 1, 1 << 16));
  moe.routing.top_k = static_cast<int32_t>(config.Int("num_experts_per_tok", 1, 1 << 16, 1));
  moe.routing.score = kernels::RouterScore::kSigmoid;
  moe.routing.renormalize = false;
  moe.weight_on_input = true;
  moe.layout.transposed = true;
  RequireRouting(config, moe.routing);
  return moe;
}

Result<std::unique_ptr<LoadableModel>> MakeLlama4(const boost::json::object& json,
                                                  const BuildOptions& options) {
  const boost::json::object text = TextConfig(json, kDefaults);
  ConfigReader config(text, "config.json");
  DecoderConfig c = ReadDecoderConfig(config, "Llama4ForCausalLM");
  c.ignored_prefixes = VisionPrefixes();
  NIBBLE_TRY(config.status());
  const AttentionKinds kinds = ReadAttentionKinds(config, c, HasTemperature(text, config));
  const Layout layout = ReadLayout(config, c.layers);
  const MoeConfig moe = ReadExperts(config, c);
  FeedForwardConfig ffn = ReadFeedForwardConfig(config, c);
  ffn.ffn_size = config.Int("intermediate_size_mlp", 1, kMaxSize, 16384);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckShares(options.tp, kinds.rope, ffn.ffn_size));
  NIBBLE_TRY(CheckShares(options.tp, moe));

  const auto make_attention = [&](int64_t layer, const std::string& prefix) {
    AttentionConfig attention = layout.rope[layer] ? kinds.rope : kinds.no_rope;
    attention.chunk = layout.chunked[layer] ? kinds.chunk : 0;
    return std::make_unique<Attention>(attention, prefix + ".self_attn", options.tp);
  };
  const auto make_feed_forward = [&](int64_t layer,
                                     const std::string& prefix) -> std::unique_ptr<Block> {
    const std::string name = prefix + ".feed_forward";
    if (layout.experts[layer]) return std::make_unique<Moe>(moe, name, options.tp);
    return std::make_unique<FeedForward>(ffn, name, options.tp);
  };
  return std::make_unique<Decoder>(c, MakePreNormLayers(c, make_attention, make_feed_forward),
                                   options);
}

const Registration kRegistration(
    {.architectures = {"Llama4ForCausalLM", "Llama4ForConditionalGeneration"},
     .make = &MakeLlama4,
     .tiny_configs = {
         // Chunks end inside pages; the second layer has no positions and no chunks.
         R"({"architectures": ["Llama4ForCausalLM"], "hidden_size": 96, "intermediate_size": 32,
    "intermediate_size_mlp": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 241, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "no_rope_layers": [1, 0, 1],
    "attention_chunk_size": 37, "use_qk_norm": true, "attn_temperature_tuning": true, "floor_scale": 16,
    "attn_scale": 0.3, "tie_word_embeddings": false})"}});

}  // namespace
}  // namespace nibble::models
