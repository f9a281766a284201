#include "quantize/output_config.h"

#include "base/file.h"

namespace nibble::quantize {
namespace {

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
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "preprocessor_config.json",
};

constexpr int kGroupSize = 16;

json::array Names(const std::vector<std::string>& modules) {
  json::array names;
  for (const std::string& module : modules) names.emplace_back(module);
  return names;
}

json::object Weights(std::string_view strategy) {
  json::object weights = {
      {"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", kGroupSize}};
  if (!strategy.empty()) {
    weights["strategy"] = strategy;
    weights["symmetric"] = true;
  }
  return weights;
}

const json::object kProducer = {{"name", "nibble"}, {"version", "0.1.0"}};

json::object ModelOptConfig(const std::vector<std::string>& ignored) {
  return {{"quant_method", "modelopt"},
          {"quant_algo", "W4A16_NVFP4"},
          {"producer", kProducer},
          {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", Weights("")}}}}},
          {"ignore", Names(ignored)}};
}

json::object CompressedTensorsConfig(const std::vector<std::string>& ignored) {
  return {{"quant_method", "compressed-tensors"},
          {"format", "nvfp4-pack-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"format", "nvfp4-pack-quantized"},
              {"weights", Weights("tensor_group")},
              {"input_activations", nullptr},
              {"output_activations", nullptr}}}}},
          {"ignore", Names(ignored)}};
}

json::object HfQuantConfig(const std::vector<std::string>& ignored) {
  return {{"producer", kProducer},
          {"quantization",
           {{"quant_algo", "W4A16_NVFP4"},
            {"kv_cache_quant_algo", nullptr},
            {"group_size", kGroupSize},
            {"exclude_modules", Names(ignored)}}}};
}

Status WriteJson(const std::string& folder, std::string_view name, const json::object& value) {
  return WriteFileAtomic(fmt::format("{}/{}", folder, name), json::serialize(value) + "\n");
}

}  // namespace

Status WriteConfigFiles(const formats::Checkpoint& source, const std::string& folder,
                        const QuantizeOptions& options, const std::vector<std::string>& kept) {
  std::vector<std::string> ignored = kept;
  // A tied head is not stored, but readers look for its name.
  if (source.Find("lm_head.weight") == nullptr) ignored.emplace_back("lm_head");
  json::object config = source.config();
  config.erase("quantization_config");
  config.erase("compression_config");
  config["torch_dtype"] = "bfloat16";
  if (options.format == Format::kNvfp4) {
    config["quantization_config"] = options.layout == Layout::kModelOpt
                                        ? ModelOptConfig(ignored)
                                        : CompressedTensorsConfig(ignored);
    if (options.layout == Layout::kModelOpt) {
      NIBBLE_TRY(WriteJson(folder, "hf_quant_config.json", HfQuantConfig(ignored)));
    }
  }
  NIBBLE_TRY(WriteJson(folder, "config.json", config));
  for (const std::string_view name : kCopied) {
    const auto text = source.ReadText(name);
    if (text) {
      NIBBLE_TRY(WriteFileAtomic(fmt::format("{}/{}", folder, name), *text));
    } else if (text.error().code() != Code::kNotFound) {
      return tl::unexpected(text.error());
    }
  }
  return {};
}

}  // namespace nibble::quantize
