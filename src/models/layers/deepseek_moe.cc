#include "models/layers/deepseek_moe.h"

#include <utility>

namespace nibble::models {
namespace {

constexpr int64_t kMaxExperts = 1 << 16;

// routed_scaling_factor, and what is said about groups.
void ReadCommonRouting(ConfigReader& config, kernels::Routing* routing) {
  routing->scale = static_cast<float>(config.Float("routed_scaling_factor", 0.0, 1e6, 1.0));
  RequireRouting(config, *routing);
}

void ReadGroups(ConfigReader& config, kernels::Routing* routing) {
  routing->groups = static_cast<int32_t>(config.Int("n_group", 1, kMaxExperts, 1));
  routing->top_groups = static_cast<int32_t>(config.Int("topk_group", 1, kMaxExperts, 1));
}

// The field may be absent; if it is there, this model's files say nothing else.
void RequireString(ConfigReader& config, const char* field, const std::string& expected) {
  const std::string value = config.String(field, expected);
  config.Require(value == expected,
                 fmt::format("{} \"{}\" is not supported: \"{}\" is", field, value, expected));
}

}  // namespace

std::unique_ptr<Block> DeepseekFeedForward::Make(int64_t layer, const std::string& prefix,
                                                 const TensorParallel& tp) const {
  if (HasExperts(layer)) return std::make_unique<Moe>(moe, prefix + ".mlp", tp);
  return std::make_unique<FeedForward>(dense, prefix + ".mlp", tp);
}

Status DeepseekFeedForward::CheckShares(const TensorParallel& tp) const {
  if (!tp.active()) return {};
  NIBBLE_TRY(TensorParallel::CheckDivides(tp.size, dense.ffn_size, "intermediate_size"));
  return models::CheckShares(tp, moe);
}

DeepseekFeedForward ReadDeepseekFeedForward(ConfigReader& config, const DecoderConfig& decoder) {
  DeepseekFeedForward out;
  out.dense = ReadFeedForwardConfig(config, decoder);
  out.first = config.Int("first_k_dense_replace", 0, kMaxLayers, 0);
  out.step = config.Int("moe_layer_freq", 1, kMaxLayers, 1);
  out.moe.hidden_size = decoder.hidden_size;
  out.moe.expert_size = config.Int("moe_intermediate_size", 1, kMaxSize);
  out.moe.shared_size = out.moe.expert_size * config.Int("n_shared_experts", 0, kMaxExperts, 0);
  out.moe.shared = "shared_experts";
  out.moe.routing.experts = static_cast<int32_t>(config.Int("n_routed_experts", 1, kMaxExperts));
  out.moe.routing.top_k = static_cast<int32_t>(config.Int("num_experts_per_tok", 1, kMaxExperts));
  return out;
}

void ReadV2Routing(ConfigReader& config, MoeConfig* moe) {
  RequireString(config, "scoring_func", "softmax");
  const std::string method = config.String("topk_method", "greedy");
  config.Require(method == "greedy" || method == "group_limited_greedy",
                 fmt::format("topk_method \"{}\" is not supported: greedy and "
                             "group_limited_greedy are",
                             method));
  // No published file renormalises, and implementations differ in what the scale then does.
  config.Require(!config.Bool("norm_topk_prob", false), "norm_topk_prob true is not supported");
  moe->routing.score = kernels::RouterScore::kSoftmax;
  moe->routing.group_score = kernels::GroupScore::kMax;
  moe->routing.renormalize = false;
  if (method == "group_limited_greedy") ReadGroups(config, &moe->routing);
  ReadCommonRouting(config, &moe->routing);
}

void ReadV3Routing(ConfigReader& config, MoeConfig* moe) {
  RequireString(config, "scoring_func", "sigmoid");
  RequireString(config, "topk_method", "noaux_tc");
  moe->choice_bias = "gate.e_score_correction_bias";
  moe->routing.score = kernels::RouterScore::kSigmoid;
  moe->routing.group_score = kernels::GroupScore::kSumOfTwoBest;
  moe->routing.renormalize = config.Bool("norm_topk_prob", true);
  ReadGroups(config, &moe->routing);
  ReadCommonRouting(config, &moe->routing);
}

std::optional<DraftHead> MakeDeepseekDraft(ConfigReader& config, const BuildOptions& options,
                                           const MakeBlock& attention,
                                           const MakeBlock& feed_forward, DecoderConfig* decoder) {
  const int64_t modules = config.Int("num_nextn_predict_layers", 0, 64, 0);
  const auto prefix_of = [&](int64_t module) {
    return fmt::format("model.layers.{}", decoder->layers + module);
  };
  const bool draft = options.draft && modules > 0;
  for (int64_t module = draft ? 1 : 0; module < modules; ++module)
    decoder->ignored_prefixes.push_back(prefix_of(module) + ".");
  if (!draft) return std::nullopt;
  const std::string prefix = prefix_of(0);
  // Copies of the model's own.
  decoder->ignored_prefixes.push_back(prefix + ".embed_tokens.");
  decoder->ignored_prefixes.push_back(prefix + ".shared_head.head.");
  DraftHead head = {.embedding_norm = prefix + ".enorm.weight",
                    .hidden_norm = prefix + ".hnorm.weight",
                    .projection = prefix + ".eh_proj",
                    .final_norm = prefix + ".shared_head.norm.weight",
                    .continues_before_norm = true};
  head.sublayers.push_back(
      {prefix + ".input_layernorm.weight", attention(decoder->layers, prefix), ""});
  head.sublayers.push_back(
      {prefix + ".post_attention_layernorm.weight", feed_forward(decoder->layers, prefix), ""});
  return head;
}

}  // namespace nibble::models
