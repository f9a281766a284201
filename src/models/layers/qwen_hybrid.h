// What Qwen3-Next and Qwen3.5 share: layers of Gated DeltaNet with full attention between them,
// each followed by a feed-forward block or experts, and an MTP module of one attention layer.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/layers/decoder.h"
#include "models/layers/gated_delta_net.h"
#include "models/layers/moe.h"

namespace nibble::models {

// What published files may leave out, for TextConfig.
inline constexpr std::string_view kQwenHybridDefaults = R"({"partial_rotary_factor": 0.25})";

struct QwenHybridConfig {
  DecoderConfig decoder;
  std::vector<bool> full_attention;  // one per layer; else Gated DeltaNet
  AttentionConfig attention;
  GatedDeltaNetConfig delta_net;
  std::vector<bool> sparse;              // one per layer: experts; else the feed-forward block
  std::optional<MoeConfig> moe;          // set if a layer is sparse
  std::optional<FeedForwardConfig> ffn;  // set if a layer is not
  bool mtp = true;                       // checkpoints may have the module
};

// The decoder, both mixers and where they stand. All layers are dense until the family says more.
QwenHybridConfig ReadQwenHybrid(ConfigReader& config, std::string architecture);

// Experts of width moe_intermediate_size, chosen by softmax, and a gated shared one.
MoeConfig ReadQwenMoe(ConfigReader& config, const DecoderConfig& decoder);

Result<std::unique_ptr<LoadableModel>> MakeQwenHybrid(const QwenHybridConfig& config,
                                                      const BuildOptions& options);

}  // namespace nibble::models
