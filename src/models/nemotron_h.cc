// Nemotron-H and Nemotron 3: layers of one norm and one mixer each: Mamba-2, attention without
// positions, a feed-forward block or experts, both with squared ReLU and without a gate. Larger
// ones route experts in a latent space of their own.
//
// The step of Mamba-2 is clamped to time_step_limit, as the original kernels do; time_step_min and
// time_step_max only describe how training began.
// Source: transformers' NemotronHForCausalLM.
#include <algorithm>
#include <memory>

#include "models/layers/decoder.h"
#include "models/layers/latent_moe.h"
#include "models/layers/mamba2.h"
#include "models/layers/moe.h"

namespace nibble::models {
namespace {

enum class Mixer : uint8_t { kMamba, kAttention, kFeedForward, kExperts };

struct MixerName {
  Mixer mixer;
  std::string_view letter;  // of hybrid_override_pattern
  std::string_view name;    // of layers_block_type: first as older files spell it
  std::string_view newer_name;
};

constexpr MixerName kMixers[] = {{Mixer::kMamba, "M", "mamba", "linear_attention"},
                                 {Mixer::kAttention, "*", "attention", "full_attention"},
                                 {Mixer::kFeedForward, "-", "mlp", "mlp"},
                                 {Mixer::kExperts, "E", "moe", "moe"}};

std::vector<std::string> ReadMixerNames(ConfigReader& config) {
  for (const char* field : {"layers_block_type", "layer_types"}) {
    if (config.Has(field)) return config.Strings(field);
  }
  std::vector<std::string> names;
  for (const char letter : config.String("hybrid_override_pattern", ""))
    names.emplace_back(1, letter);
  return names;
}

// One per layer.
std::vector<Mixer> ReadMixers(ConfigReader& config) {
  const std::vector<std::string> names = ReadMixerNames(config);
  const auto layers = static_cast<int64_t>(names.size());
  config.Require(layers >= 1 && layers <= kMaxLayers,
                 fmt::format("hybrid_override_pattern or layers_block_type names {} layers: "
                             "expected 1..{}",
                             layers, kMaxLayers));
  const int64_t declared = config.Int("num_hidden_layers", 1, kMaxLayers, layers);
  config.Require(declared == layers,
                 fmt::format("num_hidden_layers is {}, but {} layers are named", declared, layers));
  std::vector<Mixer> mixers;
  for (const std::string& name : names) {
    const auto* found = std::ranges::find_if(kMixers, [&](const MixerName& m) {
      return name == m.letter || name == m.name || name == m.newer_name;
    });
    if (found == std::end(kMixers)) {
      config.Require(false, fmt::format("layer type \"{}\": expected M (mamba), * (attention), - "
                                        "(mlp) or E (moe)",
                                        name));
      break;
    }
    mixers.push_back(found->mixer);
  }
  return mixers;
}

bool Uses(const std::vector<Mixer>& mixers, Mixer mixer) {
  return std::ranges::find(mixers, mixer) != mixers.end();
}

DecoderConfig ReadDecoder(ConfigReader& config, int64_t layers) {
  DecoderConfig c;
  c.architecture = "NemotronHForCausalLM";
  c.layers = layers;
  c.hidden_size = config.Int("hidden_size", 1, kMaxSize);
  c.vocab_size = config.Int("vocab_size", 1, kMaxSize);
  c.max_positions = config.Int("max_position_embeddings", 1, int64_t{1} << 30);
  c.tied_embeddings = config.Bool("tie_word_embeddings", false);
  const char* eps = config.Has("layer_norm_epsilon") ? "layer_norm_epsilon" : "rms_norm_eps";
  c.norm_eps = static_cast<float>(config.Float(eps, 0.0, 1.0, 1e-5));
  c.norm_style = kernels::NormStyle::kScaleThenRound;
  c.embedding_name = "backbone.embeddings.weight";
  c.final_norm_name = "backbone.norm_f.weight";
  c.ignored_prefixes = {"mtp."};
  config.Require(!config.Bool("residual_in_fp32", false), "residual_in_fp32 true is not supported");
  return c;
}

AttentionConfig ReadAttention(ConfigReader& config, const DecoderConfig& decoder) {
  const int64_t head_dim = config.Int("attention_head_dim", 1, 1 << 16, 128);
  AttentionConfig attention = ReadAttentionConfig(config, decoder, head_dim);
  if (config.Bool("attention_bias", false)) {
    attention.qkv_bias = Bias::kRequired;
    attention.output_bias = Bias::kRequired;
  }
  return attention;
}

Mamba2Config ReadMamba(ConfigReader& config, const DecoderConfig& decoder) {
  Mamba2Config m;
  m.hidden_size = decoder.hidden_size;
  m.heads = static_cast<int32_t>(config.Int("mamba_num_heads", 1, 1 << 16));
  m.head_dim = static_cast<int32_t>(config.Int("mamba_head_dim", 1, 1 << 12));
  m.groups = static_cast<int32_t>(config.Int("n_groups", 1, 1 << 16, 8));
  m.state_dim =
      static_cast<int32_t>(config.Int("ssm_state_size", 1, kernels::kMaxMamba2StateDim, 128));
  m.conv_width = static_cast<int32_t>(config.Int("conv_kernel", 2, 8, 4));
  m.conv_bias = config.Bool("use_conv_bias", true);
  m.norm_eps = decoder.norm_eps;
  constexpr double kNoLimit = std::numeric_limits<double>::infinity();
  const std::vector<double> limits = config.Floats("time_step_limit", 0.0, kNoLimit);
  config.Require(limits.empty() || (limits.size() == 2 && limits[0] <= limits[1]),
                 "time_step_limit: expected two numbers, the smaller one first");
  if (limits.size() == 2) {
    m.dt_min = static_cast<float>(limits[0]);
    m.dt_max = static_cast<float>(limits[1]);
  }
  config.Require(
      m.heads % m.groups == 0,
      fmt::format("mamba_num_heads {} is not a multiple of n_groups {}", m.heads, m.groups));
  const std::string activation = config.String("mamba_hidden_act", "silu");
  config.Require(activation == "silu",
                 fmt::format("mamba_hidden_act {}: only silu is supported", activation));
  return m;
}

MoeConfig ReadExperts(ConfigReader& config, const DecoderConfig& decoder) {
  MoeConfig moe;
  moe.hidden_size = decoder.hidden_size;
  moe.expert_size = config.Int("moe_intermediate_size", 1, kMaxSize);
  kernels::Routing& routing = moe.routing;
  routing.experts = static_cast<int32_t>(config.Int("n_routed_experts", 1, 1 << 16));
  routing.top_k = static_cast<int32_t>(config.Int("num_experts_per_tok", 1, 1 << 16));
  routing.score = kernels::RouterScore::kSigmoid;
  routing.groups = static_cast<int32_t>(config.Int("n_group", 1, 1 << 16, 1));
  routing.top_groups = static_cast<int32_t>(config.Int("topk_group", 1, 1 << 16, 1));
  routing.renormalize = config.Bool("norm_topk_prob", true);
  routing.scale = static_cast<float>(config.Float("routed_scaling_factor", 0.0, 1e6, 1.0));
  RequireRouting(config, routing);
  moe.choice_bias = "gate.e_score_correction_bias";
  moe.activation.kind = kernels::ActivationKind::kSquaredRelu;
  config.Int("n_shared_experts", 1, 1, 1);
  moe.shared_size = config.Int("moe_shared_expert_intermediate_size", 1, kMaxSize);
  moe.shared = "shared_experts";
  return moe;
}

struct Parts {
  Mamba2Config mamba;
  AttentionConfig attention;
  FeedForwardConfig ffn;
  MoeConfig moe;
  int64_t latent_size = 0;  // 0: experts work on the residual stream's width
};

Parts ReadParts(ConfigReader& config, const DecoderConfig& decoder,
                const std::vector<Mixer>& mixers) {
  Parts parts;
  if (Uses(mixers, Mixer::kMamba)) parts.mamba = ReadMamba(config, decoder);
  if (Uses(mixers, Mixer::kAttention)) parts.attention = ReadAttention(config, decoder);
  if (Uses(mixers, Mixer::kFeedForward)) {
    parts.ffn.hidden_size = decoder.hidden_size;
    parts.ffn.ffn_size = config.Int("intermediate_size", 1, kMaxSize);
    parts.ffn.activation.kind = kernels::ActivationKind::kSquaredRelu;
  }
  if (Uses(mixers, Mixer::kExperts)) {
    parts.moe = ReadExperts(config, decoder);
    parts.latent_size = config.Int("moe_latent_size", 1, kMaxSize, 0);
  }
  const std::string activation = config.String("mlp_hidden_act", "relu2");
  config.Require(activation == "relu2",
                 fmt::format("mlp_hidden_act {}: only relu2 is supported", activation));
  return parts;
}

Status CheckAllShares(const TensorParallel& tp, const Parts& parts,
                      const std::vector<Mixer>& mixers) {
  if (Uses(mixers, Mixer::kMamba)) NIBBLE_TRY(CheckShares(tp, parts.mamba));
  if (Uses(mixers, Mixer::kAttention))
    NIBBLE_TRY(CheckShares(tp, parts.attention, parts.ffn.ffn_size));
  if (Uses(mixers, Mixer::kExperts)) NIBBLE_TRY(CheckShares(tp, parts.moe));
  return TensorParallel::CheckDivides(tp.size, parts.ffn.ffn_size, "intermediate_size");
}

std::unique_ptr<Block> MakeMixer(Mixer mixer, const Parts& parts, const std::string& prefix,
                                 const TensorParallel& tp) {
  switch (mixer) {
    case Mixer::kMamba:
      return std::make_unique<Mamba2>(parts.mamba, prefix, tp);
    case Mixer::kAttention:
      return std::make_unique<Attention>(parts.attention, prefix, tp);
    case Mixer::kFeedForward:
      return std::make_unique<FeedForward>(parts.ffn, prefix, tp);
    case Mixer::kExperts:
      if (parts.latent_size > 0)
        return std::make_unique<LatentMoe>(parts.moe, parts.latent_size, prefix, tp);
      return std::make_unique<Moe>(parts.moe, prefix, tp);
  }
  return nullptr;
}

Result<std::unique_ptr<LoadableModel>> MakeNemotronH(const boost::json::object& json,
                                                     const BuildOptions& options) {
  ConfigReader config(json, "config.json");
  const std::vector<Mixer> mixers = ReadMixers(config);
  NIBBLE_TRY(config.status());
  const DecoderConfig c = ReadDecoder(config, static_cast<int64_t>(mixers.size()));
  const Parts parts = ReadParts(config, c, mixers);
  NIBBLE_TRY(config.status());
  NIBBLE_TRY(CheckAllShares(options.tp, parts, mixers));
  std::vector<Sublayer> sublayers;
  for (size_t l = 0; l < mixers.size(); ++l) {
    const std::string prefix = fmt::format("backbone.layers.{}", l);
    sublayers.push_back(
        {prefix + ".norm.weight", MakeMixer(mixers[l], parts, prefix + ".mixer", options.tp), ""});
  }
  return std::make_unique<Decoder>(c, std::move(sublayers), options);
}

const Registration kRegistration(
    {.architectures = {"NemotronHForCausalLM"},
     .make = &MakeNemotronH,
     .tiny_configs = {// Every kind of layer, as the first releases spell it.
                      R"({"architectures": ["NemotronHForCausalLM"], "hidden_size": 80,
    "hybrid_override_pattern": "EM-*M", "num_hidden_layers": 5, "intermediate_size": 96, "num_attention_heads": 6,
    "num_key_value_heads": 2, "attention_head_dim": 16, "mamba_num_heads": 4, "mamba_head_dim": 24, "n_groups": 2,
    "ssm_state_size": 40, "conv_kernel": 4, "use_conv_bias": true, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 64, "routed_scaling_factor": 2.5,
    "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "vocab_size": 211, "max_position_embeddings": 512,
    "layer_norm_epsilon": 1e-5, "mlp_hidden_act": "relu2", "tie_word_embeddings": false})",
                      // Experts in a latent space, in groups; a narrow convolution without bias.
                      R"({"architectures": ["NemotronHForCausalLM"], "hidden_size": 64,
    "layers_block_type": ["linear_attention", "moe", "full_attention"], "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 4,
    "ssm_state_size": 16, "conv_kernel": 3, "use_conv_bias": false, "time_step_limit": [0.01, 2.0],
    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32, "moe_latent_size": 48, "norm_topk_prob": false, "vocab_size": 197,
    "max_position_embeddings": 512, "layer_norm_epsilon": 1e-5})"}});

}  // namespace
}  // namespace nibble::models
