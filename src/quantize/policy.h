// Which linears are quantised and which stay as they are, decided by readable rules on the tensor's
// name and shape.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"

namespace nibble::quantize {

struct QuantizePolicy {
  // kDefault: the table in policy.cc. kFeedForward: of what the table leaves, only MLPs and
  // experts. kEverything: every matrix but embeddings and routers, lm_head included.
  enum class Preset { kDefault, kFeedForward, kEverything } preset = Preset::kDefault;
  bool lm_head = false;               // quantise lm_head too
  std::vector<std::string> keep;      // name fragments that stay as they are
  std::vector<std::string> quantise;  // name fragments that the table keeps and these do not
};

// Why a module's weight stays as it is, or "" if it is quantised. The default rules are those of
// ModelOpt's recipes: embeddings, lm_head, routers and gates, convolutions, small projections of
// linear attention, MTP and vision modules. module: "model.layers.0.mlp.up_proj"; shape: of its
// weight; multiple: what K must be a multiple of. Of keep and quantise, keep wins.
std::string ReasonToKeep(const QuantizePolicy& policy, std::string_view module, const Shape& shape,
                         int64_t multiple = 16);

// Modules that share an input get one tensor scale, so that backends may fuse them: q, k and v;
// gate and up. Returns what the members of a group have in common ("model.layers.0.mlp.gate_up"),
// or the module itself.
std::string SiblingGroup(std::string_view module);

// What a layer's experts have in common, by projection ("model.layers.0.mlp.experts.*.up_proj");
// nullopt for what is no routed expert's.
std::optional<std::string> ExpertSiblings(std::string_view module);

// False for routed experts, of which engines that fuse a layer's have one multiplier for all or
// none, and for kv_b_proj, which engines absorb into queries and values.
bool MayBeSmoothed(std::string_view module);

}  // namespace nibble::quantize
