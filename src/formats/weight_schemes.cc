#include "formats/weight_schemes.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "formats/json_file.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

std::string UpperCase(std::string_view text) {
  std::string upper(text);
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return upper;
}

// ModelOpt's quant_algo.
WeightScheme ModelOptScheme(std::string_view spelled, int64_t group) {
  const std::string algo = UpperCase(spelled);
  if (algo == "W4A16_NVFP4") return {.kind = "nvfp4"};
  if (algo.find("NVFP4") != algo.npos) return {.kind = "nvfp4", .input_scale = true};
  if (algo.find("MXFP4") != algo.npos) return {.kind = "mxfp4"};
  if (algo == "MXFP8") return {.kind = "mxfp8"};
  if (algo == "FP8") return {.kind = "fp8", .input_scale = true};
  if (algo == "FP8_PER_CHANNEL_PER_TOKEN") return {.kind = "fp8", .per_row = true};
  if (algo == "FP8_PB_WO") return {.kind = "fp8", .block_rows = 128, .block_columns = 128};
  if (algo == "W4A16_AWQ" || algo == "W4A8_AWQ")
    return {.kind = "int", .bits = 4, .group = group > 0 ? group : 128};
  if (algo == "W8A16" || algo == "W8A8_SQ_PER_CHANNEL") return {.kind = "int", .bits = 8};
  return {};
}

// A group of compressed-tensors; format: "nvfp4-pack-quantized".
WeightScheme GroupScheme(const json::object& group, std::string_view format) {
  WeightScheme scheme{.layout = WeightLayout::kCompressedTensors};
  const auto* weights = MemberObject(group, "weights");
  if (weights == nullptr || UpperCase(format) == "DENSE") return scheme;
  const int64_t bits = MemberInt(*weights, "num_bits", 0);
  const int64_t size = std::max<int64_t>(MemberInt(*weights, "group_size", 0), 0);
  const std::string_view strategy = MemberString(*weights, "strategy");
  if (MemberString(*weights, "type") != "float") {
    if (bits == 4 || bits == 8) {
      scheme.kind = "int";
      scheme.bits = bits;
      scheme.group = size;
    }
    return scheme;
  }
  const auto* inputs = MemberObject(group, "input_activations");
  if (bits == 4) {
    scheme.kind = size == 32 ? "mxfp4" : "nvfp4";
    scheme.input_scale = scheme.kind == "nvfp4" && inputs != nullptr;
  } else if (bits == 8) {
    scheme.kind = size == 32 ? "mxfp8" : "fp8";
    scheme.per_row = strategy == "channel";
    const json::value* dynamic = inputs == nullptr ? nullptr : inputs->if_contains("dynamic");
    scheme.input_scale = dynamic != nullptr && dynamic->is_bool() && !dynamic->get_bool();
    if (strategy == "block") {
      const auto [rows, columns] = ConfiguredFp8Block(
          json::object{{"quantization_config", {{"config_groups", {{"group_0", group}}}}}});
      scheme.block_rows = rows > 0 ? rows : 128;
      scheme.block_columns = columns > 0 ? columns : 128;
    }
  }
  return scheme;
}

bool HasWildcard(std::string_view name) {
  return name.starts_with("re:") || name.find_first_of("*?[") != name.npos;
}

}  // namespace

WeightSchemes WeightSchemes::Parse(const json::object& config, const json::object* hf_quant) {
  WeightSchemes schemes;
  schemes.config_ = ParseQuantizationConfig(config, hf_quant);
  if (hf_quant != nullptr) {
    if (const auto* object = MemberObject(*hf_quant, "quantization")) schemes.Add(*object);
  }
  if (const auto* object = QuantizationObject(config)) schemes.Add(*object);
  return schemes;
}

void WeightSchemes::Add(const json::object& object) {
  if (const auto* layers = MemberObject(object, "quantized_layers")) AddModelOptLayers(*layers);
  const std::string_view algo = MemberString(object, "quant_algo");
  if (!algo.empty()) {
    const WeightScheme scheme = ModelOptScheme(algo, MemberInt(object, "group_size", 0));
    if (!scheme.wide()) others_ = scheme;
    return;
  }
  if (const auto* groups = MemberObject(object, "config_groups"))
    return AddGroups(*groups, MemberString(object, "format"));
  AddMethod(MemberString(object, "quant_method"), object);
}

void WeightSchemes::AddModelOptLayers(const json::object& layers) {
  for (const auto& [name, value] : layers) {
    const auto* layer = value.if_object();
    if (layer == nullptr) continue;
    const WeightScheme scheme =
        ModelOptScheme(MemberString(*layer, "quant_algo"), MemberInt(*layer, "group_size", 0));
    if (HasWildcard(name)) {
      patterns_.emplace_back(ModulePattern(std::string(name)), scheme);
    } else {
      exact_.emplace(PlainName(name), scheme);
    }
  }
}

void WeightSchemes::AddGroups(const json::object& groups, std::string_view format) {
  for (const auto& member : groups) {
    const auto* group = member.value().if_object();
    if (group == nullptr) continue;
    const std::string_view own = MemberString(*group, "format");
    const WeightScheme scheme = GroupScheme(*group, own.empty() ? format : own);
    const json::value* targets = group->if_contains("targets");
    const auto* names = targets == nullptr ? nullptr : targets->if_array();
    if (names == nullptr) {
      others_ = scheme;
      continue;
    }
    for (const json::value& name : *names) {
      if (!name.is_string()) continue;
      if (name.get_string() == "Linear") {
        others_ = scheme;
      } else {
        patterns_.emplace_back(ModulePattern(std::string(name.get_string())), scheme);
      }
    }
  }
}

void WeightSchemes::AddMethod(std::string_view method, const json::object& object) {
  const std::string name = UpperCase(method);
  if (name == "MXFP4") {
    others_ = {.kind = "mxfp4", .layout = WeightLayout::kTransformers};
  } else if (name == "FP8") {
    const auto [rows, columns] = ConfiguredFp8Block(json::object{{"quantization_config", object}});
    others_ = {.kind = "fp8",
               .layout = WeightLayout::kTransformers,
               .block_rows = rows,
               .block_columns = columns};
  } else if (name == "FBGEMM_FP8") {
    others_ = {.kind = "fp8", .layout = WeightLayout::kCompressedTensors, .per_row = true};
  } else if (name == "AWQ" || name == "GPTQ") {
    const int64_t group = MemberInt(object, "group_size", MemberInt(object, "q_group_size", 128));
    others_ = {.kind = "int",
               .layout = name == "AWQ" ? WeightLayout::kAwq : WeightLayout::kGptq,
               .bits = MemberInt(object, "bits", MemberInt(object, "w_bit", 4)),
               .group = std::max<int64_t>(group, 0)};
  }
}

WeightScheme WeightSchemes::Of(std::string_view module) const {
  const std::string plain = PlainName(module);
  if (IsAlwaysWide(plain)) return {};
  if (const auto at = exact_.find(plain); at != exact_.end()) return at->second;
  const auto matches = [&](const ModulePattern& pattern) {
    return pattern.Matches(plain) || pattern.Matches(module);
  };
  if (std::ranges::any_of(config_.ignored, matches)) return {};
  for (const auto& [pattern, scheme] : patterns_) {
    if (matches(pattern)) return scheme;
  }
  switch (others_.layout) {
    case WeightLayout::kModelOpt:
      if (plain.starts_with("mtp.")) return {};
      break;
    case WeightLayout::kCompressedTensors:
      break;
    case WeightLayout::kTransformers:
      if (others_.kind == "mxfp4" && plain.find(".experts") == plain.npos) return {};
      [[fallthrough]];
    case WeightLayout::kAwq:
    case WeightLayout::kGptq:
      if (plain == "lm_head") return {};
      break;
  }
  return others_;
}

bool IsAlwaysWide(std::string_view module) {
  constexpr std::array<std::string_view, 8> kLast = {
      "gate",   "router",     "shared_expert_gate", "embed_tokens",
      "conv1d", "in_proj_ba", "in_proj_a",          "in_proj_b"};
  const size_t dot = module.rfind('.');
  const std::string_view last = dot == module.npos ? module : module.substr(dot + 1);
  return std::ranges::find(kLast, last) != kLast.end();
}

}  // namespace nibble::formats
