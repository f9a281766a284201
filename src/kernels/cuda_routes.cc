#include "kernels/cuda_routes.h"

#include <charconv>

namespace nibble::kernels {
namespace {

struct Target {
  ComputeCapability of;
  char suffix =
      0;  // 'a': this capability alone; 'f': its family; 0: and what is newer within major
};

Target Parse(std::string_view name) {
  Target target;
  int number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error != std::errc()) return {};
  if (end != name.data() + name.size()) target.suffix = *end;
  target.of = {number / 10, number % 10};
  return target;
}

constexpr std::string_view kBlockScaled = "nvfp4 mxfp4 mxfp8 bf16 f16 f32 fp8";
constexpr std::string_view kGroups = "int4 int8 fp8 in blocks";
constexpr std::string_view kWideGroups = "int4 int8 fp8 in blocks of 64 or more";

#ifdef NIBBLE_CUDA_TARGET_LIST
constexpr std::string_view kBuildTargets[] = {NIBBLE_CUDA_TARGET_LIST};
#endif

}  // namespace

ComputeCapability CapabilityOf(std::string_view target) { return Parse(target).of; }

bool RunsOn(std::string_view name, ComputeCapability capability) {
  const Target target = Parse(name);
  if (target.of.major != capability.major || target.of.minor > capability.minor) return false;
  return target.suffix != 'a' || target.of.minor == capability.minor;
}

std::string_view CubinFor(ComputeCapability capability, std::span<const std::string_view> targets) {
  const auto rank = [](std::string_view name) {
    const Target target = Parse(name);
    return 4 * target.of.minor + (target.suffix == 'a' ? 2 : target.suffix == 'f' ? 1 : 0);
  };
  std::string_view best;
  for (const std::string_view target : targets)
    if (RunsOn(target, capability) && (best.empty() || rank(target) > rank(best))) best = target;
  return best;
}

std::span<const std::string_view> BuildTargets() {
#ifdef NIBBLE_CUDA_TARGET_LIST
  return kBuildTargets;
#else
  return {};
#endif
}

std::vector<KernelRoute> RoutesOf(ComputeCapability c) {
  std::vector<KernelRoute> routes;
  const bool wgmma = HasWgmma(c);
  routes.push_back({"linear", "all", "1-8 tokens", "linear, mma.sync BF16"});
  if (wgmma) {
    routes.push_back({"linear", kBlockScaled, "9-64, where faster; more", "prefill, wgmma BF16"});
    routes.push_back({"linear", kWideGroups, "more than 64", "prefill, wgmma BF16"});
    routes.push_back({"linear", kGroups, "else, 64 at a time", "linear, mma.sync BF16"});
  } else {
    routes.push_back({"linear", "all", "more, up to 64 at a time", "linear, mma.sync BF16"});
  }
  if (HasBlockScaledMma(c))
    routes.push_back({"linear_w4a4", "nvfp4 with input_scale", "tokens of prompts",
                      "w4a4, block-scaled FP4 MMA"});
  if (wgmma)
    routes.push_back({"linear_fp8", "fp8 by tensor, row or 128 columns",
                      "prompts, --activations fp8", "fp8, wgmma E4M3"});
  if (HasBlockScaledMma(c))
    routes.push_back(
        {"moe", "nvfp4 with input_scale", "tokens of prompts", "w4a4, block-scaled FP4 MMA"});
  if (wgmma) {
    for (const std::string_view formats : {kBlockScaled, kWideGroups})
      routes.push_back({"moe", formats, "many rows per expert", "moe, grouped wgmma BF16"});
  }
  routes.push_back({"moe", "all", wgmma ? "else" : "any", "moe, mma.sync BF16"});
  if (wgmma)
    routes.push_back(
        {"attention", "bf16 fp8 nvfp4, Dh 64, 128, 256", "prompts", "attention, wgmma BF16"});
  routes.push_back(
      {"attention", "bf16 fp8 nvfp4", wgmma ? "else" : "any", "attention, mma.sync BF16"});
  routes.push_back(
      {"gated_delta_net, mamba2", "f32 states", "any",
       c.major >= 9 ? "one kernel, in clusters where sequences are few" : "one kernel"});
  return routes;
}

}  // namespace nibble::kernels
