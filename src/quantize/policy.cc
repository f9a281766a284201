#include "quantize/policy.h"

#include <fmt/format.h>

#include <algorithm>

namespace nibble::quantize {
namespace {

struct Rule {
  std::string_view fragment;  // of the module's name and a final dot
  std::string_view reason;
  bool always = false;  // under every preset
};

// What stays wide, each with why it costs too much quality for the bytes that it would save.
constexpr Rule kRules[] = {
    {"embed", "looked up by row, not multiplied", true},
    {"router.", "routing decisions are discrete", true},
    {"mlp.gate.", "routing decisions are discrete", true},
    {"mixer.gate.", "routing decisions are discrete", true},
    {"block_sparse_moe.gate.", "routing decisions are discrete", true},
    {"shared_expert_gate.", "one row", true},
    {"conv1d.", "a convolution of few taps", true},
    {"A_log.", "decay rates", true},
    {"dt_bias.", "decay rates", true},
    {"norm.", "a norm", true},
    {"in_proj_a.", "few rows that set decay rates"},
    {"in_proj_b.", "few rows that set decay rates"},
    {"in_proj_ba.", "few rows that set decay rates"},
    {"mtp.", "draft head"},
    {"visual.", "vision tower"},
    {"vision_tower.", "vision tower"},
    {"vision_model.", "vision tower"},
    {"multi_modal_projector.", "vision tower"},
};

constexpr std::string_view kFeedForward[] = {"mlp.", "expert", "feed_forward.", "mixer.up_proj.",
                                             "mixer.down_proj."};

constexpr std::pair<std::string_view, std::string_view> kSiblings[] = {
    {".q_proj", ".qkv"},      {".k_proj", ".qkv"}, {".v_proj", ".qkv"}, {".gate_proj", ".gate_up"},
    {".up_proj", ".gate_up"}, {".w1", ".w13"},     {".w3", ".w13"},
};

// The first fragment that the name holds, or "".
std::string_view Held(const std::vector<std::string>& fragments, const std::string& dotted) {
  const auto found = std::ranges::find_if(
      fragments, [&](const std::string& fragment) { return dotted.find(fragment) != dotted.npos; });
  return found == fragments.end() ? std::string_view() : std::string_view(*found);
}

}  // namespace

std::string ReasonToKeep(const QuantizePolicy& policy, std::string_view module, const Shape& shape,
                         int64_t multiple) {
  using Preset = QuantizePolicy::Preset;
  if (shape.rank() != 2) return "not a matrix";
  if (shape[1] % multiple != 0)
    return fmt::format("K {} is not a multiple of {}", shape[1], multiple);
  const std::string dotted = std::string(module) + ".";
  if (const auto fragment = Held(policy.keep, dotted); !fragment.empty())
    return fmt::format("--keep {}", fragment);
  if (!Held(policy.quantise, dotted).empty()) return "";
  if (module.ends_with("lm_head")) {
    const bool wanted = policy.lm_head || policy.preset == Preset::kEverything;
    return wanted ? "" : "output logits; --lm-head quantises it";
  }
  for (const Rule& rule : kRules) {
    if (policy.preset == Preset::kEverything && !rule.always) continue;
    if (dotted.find(rule.fragment) != dotted.npos) return std::string(rule.reason);
  }
  if (policy.preset == Preset::kFeedForward &&
      std::ranges::none_of(kFeedForward, [&](std::string_view fragment) {
        return dotted.find(fragment) != dotted.npos;
      }))
    return "not feed-forward";
  return "";
}

std::string SiblingGroup(std::string_view module) {
  for (const auto& [suffix, group] : kSiblings) {
    if (module.ends_with(suffix)) {
      return std::string(module.substr(0, module.size() - suffix.size())) + std::string(group);
    }
  }
  return std::string(module);
}

std::optional<std::string> ExpertSiblings(std::string_view module) {
  constexpr std::string_view kExperts = ".experts.";
  const size_t at = module.rfind(kExperts);
  if (at == module.npos) return std::nullopt;
  const size_t number = at + kExperts.size();
  const size_t end = module.find_first_not_of("0123456789", number);
  if (end == number || end == module.npos || module[end] != '.') return std::nullopt;
  return fmt::format("{}*{}", module.substr(0, number), module.substr(end));
}

bool MayBeSmoothed(std::string_view module) {
  return !ExpertSiblings(module) && !module.ends_with(".kv_b_proj");
}

}  // namespace nibble::quantize
