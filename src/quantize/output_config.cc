#include "quantize/output_config.h"

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <string_view>

#include "base/file.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// Copied as they are where the source has them.
constexpr std::string_view kCopied[] = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tekken.json",
    "tiktoken.model",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
};

using Groups = std::map<Scheme, std::vector<std::string>>;  // modules by how they are stored

json::array Names(const std::vector<std::string>& modules) {
  json::array names;
  for (const std::string& module : modules) names.emplace_back(module);
  return names;
}

const json::object kProducer = {{"name", "nibble"}, {"version", "0.1.0"}};

// ---- ModelOpt ----

std::string ModelOptAlgorithm(const Scheme& scheme) {
  if (scheme.format == Format::kMxfp4) return "MXFP4";
  if (scheme.format == Format::kNvfp4)
    return scheme.smoothed ? "NVFP4_AWQ" : scheme.activations ? "NVFP4" : "W4A16_NVFP4";
  if (scheme.stored == "fp8") return "FP8";
  return scheme.stored == "mxfp4" ? "MXFP4" : "W4A16_AWQ";
}

int64_t GroupSize(const Scheme& scheme) {
  const bool mx = scheme.format == Format::kMxfp4 || scheme.stored == "mxfp4";
  return mx ? kMxfp4Block : kNvfp4Block;
}

json::object ModelOptNumbers(const Scheme& scheme) {
  return {
      {"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", GroupSize(scheme)}};
}

json::object QuantizedLayers(const Groups& groups) {
  json::object layers;
  for (const auto& [scheme, modules] : groups) {
    json::object entry = {{"quant_algo", ModelOptAlgorithm(scheme)}};
    if (scheme.format != Format::kBf16) entry["group_size"] = GroupSize(scheme);
    for (const std::string& module : modules) layers[module] = entry;
  }
  return layers;
}

json::object ModelOptConfig(const Groups& groups, const std::vector<std::string>& ignored,
                            const std::string& algorithm) {
  json::object config = {
      {"quant_method", "modelopt"}, {"quant_algo", algorithm}, {"producer", kProducer}};
  json::object config_groups;
  for (const auto& [scheme, modules] : groups) {
    if (scheme.format == Format::kBf16) continue;
    json::object group = {{"targets", {"Linear"}}, {"weights", ModelOptNumbers(scheme)}};
    if (groups.size() > 1) group["targets"] = Names(modules);
    if (scheme.activations) group["input_activations"] = ModelOptNumbers(scheme);
    config_groups[fmt::format("group_{}", config_groups.size())] = std::move(group);
  }
  config["config_groups"] = std::move(config_groups);
  if (groups.size() > 1) config["quantized_layers"] = QuantizedLayers(groups);
  config["ignore"] = Names(ignored);
  return config;
}

json::object HfQuantConfig(const Groups& groups, const std::vector<std::string>& ignored,
                           const std::string& algorithm, const json::value& kv_cache) {
  const Scheme& first = groups.begin()->first;
  json::object quantization = {{"quant_algo", algorithm},
                               {"kv_cache_quant_algo", kv_cache},
                               {"group_size", GroupSize(first)}};
  if (first.smoothed || groups.size() > 1) quantization["pre_quant_scale"] = first.smoothed;
  if (groups.size() > 1) quantization["quantized_layers"] = QuantizedLayers(groups);
  quantization["exclude_modules"] = Names(ignored);
  return {{"producer", kProducer}, {"quantization", std::move(quantization)}};
}

// ---- compressed-tensors ----

std::string_view CompressedFormat(const Scheme& scheme) {
  switch (scheme.format) {
    case Format::kNvfp4:
      return "nvfp4-pack-quantized";
    case Format::kMxfp4:
      return "mxfp4-pack-quantized";
    case Format::kInt4:
      return "pack-quantized";
    case Format::kFp8:
    case Format::kBf16:
      break;
  }
  return "float-quantized";
}

json::object CompressedWeights(const Scheme& scheme) {
  json::object weights = {{"num_bits", 4}, {"type", "float"}, {"symmetric", true}};
  switch (scheme.format) {
    case Format::kNvfp4:
      weights["strategy"] = "tensor_group";
      weights["group_size"] = kNvfp4Block;
      break;
    case Format::kMxfp4:
      weights["strategy"] = "group";
      weights["group_size"] = kMxfp4Block;
      weights["scale_dtype"] = "torch.uint8";
      weights["zp_dtype"] = "torch.uint8";
      break;
    case Format::kInt4:
      weights["type"] = "int";
      weights["strategy"] = "group";
      weights["group_size"] = scheme.group;
      break;
    case Format::kFp8:
    case Format::kBf16:
      weights["num_bits"] = 8;
      weights["strategy"] = "channel";
      break;
  }
  weights["dynamic"] = false;
  return weights;
}

json::value CompressedActivations(const Scheme& scheme) {
  if (!scheme.activations) return nullptr;
  return json::object{{"num_bits", 4},
                      {"type", "float"},
                      {"symmetric", true},
                      {"strategy", "tensor_group"},
                      {"group_size", kNvfp4Block},
                      {"dynamic", "local"}};
}

json::object CompressedTensorsConfig(const Groups& groups,
                                     const std::vector<std::string>& ignored) {
  json::object config_groups;
  for (const auto& [scheme, modules] : groups) {
    config_groups[fmt::format("group_{}", config_groups.size())] =
        json::object{{"targets", groups.size() > 1 ? Names(modules) : json::array{"Linear"}},
                     {"format", CompressedFormat(scheme)},
                     {"weights", CompressedWeights(scheme)},
                     {"input_activations", CompressedActivations(scheme)},
                     {"output_activations", nullptr}};
  }
  const bool mixed = groups.size() > 1;
  return {{"quant_method", "compressed-tensors"},
          {"format", mixed ? "mixed-precision" : CompressedFormat(groups.begin()->first)},
          {"quantization_status", "compressed"},
          {"config_groups", std::move(config_groups)},
          {"ignore", Names(ignored)}};
}

// What the source says about its KV cache, whose scales are copied with the other tensors.
json::value FindIn(const json::object& object, std::string_view outer, std::string_view name) {
  const json::value* inner = object.if_contains(outer);
  if (inner == nullptr || !inner->is_object()) return nullptr;
  const json::value* found = inner->get_object().if_contains(name);
  return found != nullptr ? *found : json::value(nullptr);
}

Status WriteJson(const std::string& folder, std::string_view name, const json::object& value) {
  return WriteFileAtomic(fmt::format("{}/{}", folder, name), json::serialize(value) + "\n");
}

}  // namespace

Status CopyTexts(const formats::Checkpoint& source, const std::string& folder) {
  for (const std::string_view name : kCopied) {
    const auto text = source.ReadText(name);
    if (text) {
      const fs::path path = fs::path(folder) / name;
      std::error_code ignored;  // the file's own error says more
      fs::create_directories(path.parent_path(), ignored);
      NIBBLE_TRY(WriteFileAtomic(path.string(), *text));
    } else if (text.error().code() != Code::kNotFound) {
      return tl::unexpected(text.error());
    }
  }
  return {};
}

Status WriteConfigFiles(const formats::Checkpoint& source, const std::string& folder, Layout layout,
                        const std::vector<OutputModule>& modules,
                        const std::vector<std::string>& kept) {
  std::vector<std::string> ignored = kept;
  // A tied head is not stored, but readers look for its name.
  if (source.Find("lm_head.weight") == nullptr) ignored.emplace_back("lm_head");

  json::object config = source.config();
  const json::value kv_scheme = FindIn(config, "quantization_config", "kv_cache_scheme");
  json::value kv_cache = nullptr;
  if (const auto text = source.ReadText("hf_quant_config.json"); text) {
    boost::system::error_code failed;
    const json::value parsed = json::parse(*text, failed);
    if (!failed && parsed.is_object())
      kv_cache = FindIn(parsed.get_object(), "quantization", "kv_cache_quant_algo");
  }
  config.erase("quantization_config");
  config.erase("compression_config");
  config["torch_dtype"] = "bfloat16";

  Groups groups;
  for (const OutputModule& output : modules) groups[output.scheme].push_back(output.module);
  if (!groups.empty()) {
    json::object quantization;
    if (layout == Layout::kModelOpt) {
      const std::string algorithm =
          groups.size() > 1 ? "MIXED_PRECISION" : ModelOptAlgorithm(groups.begin()->first);
      quantization = ModelOptConfig(groups, ignored, algorithm);
      NIBBLE_TRY(WriteJson(folder, "hf_quant_config.json",
                           HfQuantConfig(groups, ignored, algorithm, kv_cache)));
    } else {
      quantization = CompressedTensorsConfig(groups, ignored);
    }
    if (!kv_scheme.is_null()) quantization["kv_cache_scheme"] = kv_scheme;
    config["quantization_config"] = std::move(quantization);
  }
  NIBBLE_TRY(CopyTexts(source, folder));
  // Last: a folder without it is no checkpoint.
  return WriteJson(folder, "config.json", config);
}

}  // namespace nibble::quantize
