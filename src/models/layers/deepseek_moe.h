// What DeepSeek-V2's descendants share beyond the mixture itself: the names of its fields and
// tensors, which layers have experts, and the draft head behind the last layer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "models/layers/decoder.h"
#include "models/layers/moe.h"

namespace nibble::models {

// Experts in every step-th layer from `first` on; a plain feed-forward block elsewhere.
struct DeepseekFeedForward {
  FeedForwardConfig dense;
  MoeConfig moe;
  int64_t first = 0;
  int64_t step = 1;

  bool HasExperts(int64_t layer) const { return layer >= first && layer % step == 0; }
  std::unique_ptr<Block> Make(int64_t layer, const std::string& prefix,
                              const TensorParallel& tp) const;
  Status CheckShares(const TensorParallel& tp) const;
};

// first_k_dense_replace, moe_layer_freq or mlp_layer_types, and the sizes; routing is left to one
// of the next two.
DeepseekFeedForward ReadDeepseekFeedForward(ConfigReader& config, const DecoderConfig& decoder);

// V2: softmax; topk_method greedy, or group_limited_greedy: groups by their best expert.
void ReadV2Routing(ConfigReader& config, MoeConfig* moe);
// V3, Kimi-K2, GLM-4.5: sigmoid, a bias for the choice, groups by the sum of their two best.
void ReadV3Routing(ConfigReader& config, MoeConfig* moe);

// The first MTP module, stored as layer `num_hidden_layers`: one more layer, made by `attention`
// and `feed_forward`. nullopt where options.draft is false or the config counts none. Tensors of
// the modules that this leaves unused are added to what `decoder` ignores.
std::optional<DraftHead> MakeDeepseekDraft(ConfigReader& config, const BuildOptions& options,
                                           const MakeBlock& attention,
                                           const MakeBlock& feed_forward, DecoderConfig* decoder);

}  // namespace nibble::models
