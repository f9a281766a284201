#include "quantize/policy.h"

#include <fmt/format.h>

#include "numerics/nvfp4.h"

namespace nibble::quantize {
namespace {

struct Rule {
  std::string_view fragment;
  std::string_view reason;
};

// Name fragments, each with why it costs too much quality for the bytes that it would save.
constexpr Rule kRules[] = {
    {"embed_tokens", "looked up by row, not multiplied"},
    {"embeddings", "looked up by row, not multiplied"},
    {"router", "routing decisions are discrete"},
    {"mlp.gate.", "routing decisions are discrete"},
    {"block_sparse_moe.gate.", "routing decisions are discrete"},
    {"shared_expert_gate", "one row"},
    {"linear_attn.conv1d", "a convolution of few taps"},
    {"mixer.conv1d", "a convolution of few taps"},
    {"linear_attn.in_proj_a", "few rows that set decay rates"},
    {"linear_attn.in_proj_b", "few rows that set decay rates"},
    {"mtp.", "draft head"},
    {"visual.", "vision tower"},
    {"vision_tower", "vision tower"},
    {"vision_model", "vision tower"},
    {"multi_modal_projector", "vision tower"},
};

constexpr std::pair<std::string_view, std::string_view> kSiblings[] = {
    {".q_proj", ".qkv"},      {".k_proj", ".qkv"}, {".v_proj", ".qkv"}, {".gate_proj", ".gate_up"},
    {".up_proj", ".gate_up"}, {".w1", ".w13"},     {".w3", ".w13"},
};

}  // namespace

std::string ReasonToKeep(const QuantizePolicy& policy, std::string_view module,
                         const Shape& shape) {
  if (shape.rank() != 2) return "not a matrix";
  if (shape[1] % kNvfp4Block != 0)
    return fmt::format("K {} is not a multiple of {}", shape[1], kNvfp4Block);
  const std::string dotted = std::string(module) + ".";
  for (const std::string& fragment : policy.keep) {
    if (dotted.find(fragment) != std::string::npos) return fmt::format("--keep {}", fragment);
  }
  if (module.ends_with("lm_head"))
    return policy.lm_head ? "" : "output logits; --lm-head quantises it";
  for (const Rule& rule : kRules) {
    if (dotted.find(rule.fragment) != std::string::npos) return std::string(rule.reason);
  }
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

}  // namespace nibble::quantize
