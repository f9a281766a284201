#include "formats/quantization_config.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <optional>

#include "formats/json_file.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

constexpr std::string_view kRegexPrefix = "re:";
constexpr size_t kMaxPattern = 1024;
constexpr uint32_t kMatchLimit = 20'000;

using RegexPtr = std::shared_ptr<const pcre2_code>;

RegexPtr CompileRegex(std::string_view pattern) {
  if (pattern.size() > kMaxPattern) return nullptr;
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_ANCHORED, &error, &offset, nullptr);
  if (code == nullptr) return nullptr;
  return {code, [](const pcre2_code* owned) { pcre2_code_free(const_cast<pcre2_code*>(owned)); }};
}

bool RegexMatches(const pcre2_code& code, std::string_view text) {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(context, kMatchLimit);
  pcre2_set_depth_limit(context, kMatchLimit);
  const int found = pcre2_match(&code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0,
                                match, context);
  pcre2_match_context_free(context);
  pcre2_match_data_free(match);
  return found >= 0;
}

// Whether c is in the set that starts at pattern[at] == '['; moves `at` to its ']'.
bool SetContains(std::string_view pattern, size_t& at, char c) {
  size_t i = at + 1;
  const bool negated = i < pattern.size() && (pattern[i] == '!' || pattern[i] == '^');
  if (negated) ++i;
  bool found = false;
  for (const size_t first = i; i < pattern.size() && (pattern[i] != ']' || i == first); ++i) {
    if (i + 2 < pattern.size() && pattern[i + 1] == '-' && pattern[i + 2] != ']') {
      found = found || (pattern[i] <= c && c <= pattern[i + 2]);
      i += 2;
    } else {
      found = found || pattern[i] == c;
    }
  }
  at = i;
  return found != negated;
}

// Shell wildcards over the whole text: on a mismatch the last '*' takes one more character, which
// is enough because an earlier '*' never has to take more.
bool WildcardMatches(std::string_view pattern, std::string_view text) {
  constexpr size_t kNone = std::string_view::npos;
  size_t at = 0;
  size_t star = kNone;
  size_t star_text = 0;
  for (size_t i = 0; i < text.size();) {
    size_t next = at;
    const bool one =
        at < pattern.size() && pattern[at] != '*' &&
        (pattern[at] == '?' || (pattern[at] == '[' && SetContains(pattern, next, text[i])) ||
         pattern[at] == text[i]);
    if (one) {
      at = next + 1;
      ++i;
    } else if (at < pattern.size() && pattern[at] == '*') {
      star = at++;
      star_text = i;
    } else if (star != kNone) {
      at = star + 1;
      i = ++star_text;
    } else {
      return false;
    }
  }
  while (at < pattern.size() && pattern[at] == '*') ++at;
  return at >= pattern.size();
}

std::string UpperCase(std::string_view text) {
  std::string upper(text);
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return upper;
}

// ModelOpt's quant_algo, compressed-tensors' format and transformers' quant_method → kind. The
// empty kind names no weight format.
std::optional<std::string_view> KindOf(std::string_view spelled) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 30> kKinds = {{
      {"NVFP4", "nvfp4"},
      {"W4A16_NVFP4", "nvfp4"},
      {"NVFP4_AWQ", "nvfp4"},
      {"NVFP4_SVD", "nvfp4"},
      {"W4A8_NVFP4_FP8", "nvfp4"},
      {"NVFP4-PACK-QUANTIZED", "nvfp4"},
      {"MXFP4", "mxfp4"},
      {"W4A8_MXFP4_FP8", "mxfp4"},
      {"MXFP4-PACK-QUANTIZED", "mxfp4"},
      {"FP8", "fp8"},
      {"FP8_PER_CHANNEL_PER_TOKEN", "fp8"},
      {"FP8_PB_WO", "fp8"},
      {"MXFP8", "mxfp8"},
      {"MXFP8-QUANTIZED", "mxfp8"},
      {"FLOAT-QUANTIZED", "fp8"},
      {"FBGEMM_FP8", "fp8"},
      {"W4A16_AWQ", "int"},
      {"W4A8_AWQ", "int"},
      {"W8A16", "int"},
      {"W8A8_SQ_PER_CHANNEL", "int"},
      {"PACK-QUANTIZED", "int"},
      {"INT-QUANTIZED", "int"},
      {"AWQ", "awq"},
      {"GPTQ", "gptq"},
      {"NAIVE-QUANTIZED", ""},  // 8-bit float or integer: the groups say which
      {"DENSE", ""},
      {"MIXED-PRECISION", ""},
      {"MIXED_PRECISION", ""},
      {"MODELOPT", ""},
      {"COMPRESSED-TENSORS", ""},
  }};
  const std::string upper = UpperCase(spelled);
  for (const auto& [name, kind] : kKinds) {
    if (upper == name) return kind;
  }
  return std::nullopt;
}

void AppendPatterns(const json::object& object, std::string_view key,
                    std::vector<ModulePattern>& patterns) {
  const json::value* list = object.if_contains(key);
  if (list == nullptr || !list->is_array()) return;
  for (const json::value& item : list->get_array()) {
    if (item.is_string()) patterns.emplace_back(std::string(item.get_string()));
  }
}

// Collects what one file says; `file` is its name.
class Collector {
 public:
  Collector(QuantizationConfig& result, std::string_view file) : result_(result), file_(file) {}

  // quantization_config of config.json, or "quantization" of hf_quant_config.json.
  void Add(const json::object& object) {
    AddSpelled(MemberString(object, "quant_algo"));
    AddSpelled(MemberString(object, "moe_quant_algo"));
    const std::string_view method = MemberString(object, "quant_method");
    AddSpelled(method);
    const auto* groups = MemberObject(object, "config_groups");
    // ModelOpt's groups repeat quant_algo in less detail.
    if (groups != nullptr && MemberString(object, "quant_algo").empty()) {
      AddGroups(*groups, MemberString(object, "format"));
    }
    AddLayers(object);
    for (const std::string_view key :
         {"ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers"}) {
      AppendPatterns(object, key, result_.ignored);
    }
    AddKvCache(object);
  }

 private:
  void AddSpelled(std::string_view spelled) {
    if (spelled.empty()) return;
    const auto kind = KindOf(spelled);
    if (!kind) {
      result_.unknown.emplace_back(spelled);
    } else if (!kind->empty()) {
      AddKind(*kind, spelled);
    }
  }

  void AddKind(std::string_view kind, std::string_view spelled) {
    for (const auto& named : result_.formats) {
      if (named.kind == kind) return;
    }
    result_.formats.push_back({std::string(kind), std::string(spelled), std::string(file_)});
  }

  void AddGroups(const json::object& groups, std::string_view format) {
    bool every_linear = groups.empty();
    std::vector<ModulePattern> targets;
    for (const auto& member : groups) {
      const auto* group = member.value().if_object();
      if (group == nullptr) continue;
      AddGroup(*group, format);
      const json::value* names = group->if_contains("targets");
      if (names == nullptr || !names->is_array()) {
        every_linear = true;
        continue;
      }
      for (const json::value& name : names->get_array()) {
        if (name.is_string() && name.get_string() == "Linear") every_linear = true;
      }
      AppendPatterns(*group, "targets", targets);
    }
    if (!every_linear) result_.only = std::move(targets);
  }

  void AddGroup(const json::object& group, std::string_view format) {
    const std::string_view own = MemberString(group, "format");
    const std::string_view spelled = own.empty() ? format : own;
    const auto kind = KindOf(spelled);
    if (kind && !kind->empty()) return AddKind(*kind, spelled);
    const auto* weights = MemberObject(group, "weights");
    if (weights == nullptr || UpperCase(spelled) == "DENSE") return;
    const int64_t bits = MemberInt(*weights, "num_bits");
    if (MemberString(*weights, "type") != "float") {
      if (bits > 0) AddKind("int", fmt::format("{}-bit int weights", bits));
      return;
    }
    const int64_t size = MemberInt(*weights, "group_size");
    if (bits == 8) {
      AddKind(size == 32 ? "mxfp8" : "fp8",
              size == 32 ? "8-bit float weights in groups of 32" : "8-bit float weights");
    } else if (bits == 4) {
      AddKind(size == 32 ? "mxfp4" : "nvfp4",
              fmt::format("4-bit float weights in groups of {}", size));
    }
  }

  // MIXED_PRECISION: module → its own quant_algo.
  void AddLayers(const json::object& object) {
    const auto* layers = MemberObject(object, "quantized_layers");
    if (layers == nullptr) return;
    for (const auto& member : *layers) {
      result_.only.emplace_back(std::string(member.key()));
      if (const auto* layer = member.value().if_object()) {
        AddSpelled(MemberString(*layer, "quant_algo"));
      }
    }
  }

  void AddKvCache(const json::object& object) {
    std::string name(MemberString(object, "kv_cache_quant_algo"));
    if (const auto* scheme = MemberObject(object, "kv_cache_scheme"); name.empty() && scheme) {
      const int64_t bits = MemberInt(*scheme, "num_bits");
      const bool is_float = MemberString(*scheme, "type") == "float";
      if (bits == 8) name = is_float ? "fp8" : "int8";
      if (bits == 4 && is_float) name = "nvfp4";
    }
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (!name.empty()) result_.kv_cache = name;
  }

  QuantizationConfig& result_;
  std::string_view file_;
};

std::pair<int64_t, int64_t> BlockSize(const json::value* value) {
  if (value == nullptr) return {0, 0};
  if (const auto* pair = value->if_array(); pair != nullptr && pair->size() == 2) {
    const auto* rows = (*pair)[0].if_int64();
    const auto* columns = (*pair)[1].if_int64();
    if (rows != nullptr && columns != nullptr) return {*rows, *columns};
  }
  if (const auto* text = value->if_string()) {  // "128x128"
    int64_t rows = 0;
    int64_t columns = 0;
    const char* end = text->data() + text->size();
    const auto first = std::from_chars(text->data(), end, rows);
    if (first.ec != std::errc() || first.ptr == end || *first.ptr != 'x') return {0, 0};
    if (std::from_chars(first.ptr + 1, end, columns).ec == std::errc()) return {rows, columns};
  }
  return {0, 0};
}

}  // namespace

const json::object* QuantizationObject(const json::object& config) {
  for (const std::string_view key : {"quantization_config", "compression_config"}) {
    if (const auto* found = MemberObject(config, key)) return found;
    const auto* text = MemberObject(config, "text_config");
    if (text == nullptr) continue;
    if (const auto* found = MemberObject(*text, key)) return found;
  }
  return nullptr;
}

ModulePattern::ModulePattern(std::string text) : text_(std::move(text)) {
  if (text_.starts_with(kRegexPrefix)) {
    regex_ = CompileRegex(std::string_view(text_).substr(kRegexPrefix.size()));
  } else {
    text_ = PlainName(text_);
    if (text_.find_first_of("*?[") != text_.npos && !text_.ends_with('*')) children_ = text_ + ".*";
  }
}

bool ModulePattern::Matches(std::string_view module) const {
  if (text_.starts_with(kRegexPrefix)) {
    return regex_ != nullptr && RegexMatches(*static_cast<const pcre2_code*>(regex_.get()), module);
  }
  if (text_.empty() || text_.size() > kMaxPattern) return false;
  if (text_ == module || WildcardMatches(text_, module)) return true;
  // A module's children go with it: transformers lists "model.layers.*.self_attn".
  if (children_.size() > 0 && WildcardMatches(children_, module)) return true;
  // Old exports list parts of names ("router", "vision_model").
  return text_.find_first_of("*?[") == text_.npos && module.find(text_) != module.npos;
}

bool QuantizationConfig::NamesModule(std::string_view module) const {
  const std::string plain = PlainName(module);
  const auto matches = [&](const ModulePattern& pattern) {
    return pattern.Matches(plain) || pattern.Matches(module);
  };
  if (formats.empty() || std::any_of(ignored.begin(), ignored.end(), matches)) return false;
  return only.empty() || std::any_of(only.begin(), only.end(), matches);
}

QuantizationConfig ParseQuantizationConfig(const json::object& config,
                                           const json::object* hf_quant) {
  QuantizationConfig result;
  if (const auto* object = QuantizationObject(config)) {
    Collector(result, "config.json").Add(*object);
  }
  if (hf_quant != nullptr) {
    if (const auto* object = MemberObject(*hf_quant, "quantization")) {
      Collector(result, "hf_quant_config.json").Add(*object);
    }
  }
  return result;
}

Result<QuantizationConfig> ReadQuantizationConfig(const Checkpoint& checkpoint) {
  const auto text = checkpoint.ReadText("hf_quant_config.json");
  if (!text && text.error().code() == Code::kNotFound) {
    return ParseQuantizationConfig(checkpoint.config(), nullptr);
  }
  NIBBLE_TRY(text);
  NIBBLE_ASSIGN(const json::object hf_quant,
                ParseJsonObject(*text, checkpoint.path() + "/hf_quant_config.json"));
  return ParseQuantizationConfig(checkpoint.config(), &hf_quant);
}

std::vector<int64_t> ConfiguredGroupSizes(const json::object& config) {
  std::vector<int64_t> sizes;
  const json::object* object = QuantizationObject(config);
  if (object == nullptr) return sizes;
  for (const std::string_view key : {"group_size", "q_group_size"}) {
    if (const int64_t size = MemberInt(*object, key); size > 0) sizes.push_back(size);
  }
  const auto* groups = MemberObject(*object, "config_groups");
  if (groups == nullptr) return sizes;
  for (const auto& member : *groups) {
    const auto* group = member.value().if_object();
    const auto* weights = group == nullptr ? nullptr : MemberObject(*group, "weights");
    if (weights == nullptr) continue;
    if (const int64_t size = MemberInt(*weights, "group_size"); size > 0) sizes.push_back(size);
  }
  return sizes;
}

GptqZeros ConfiguredGptqZeros(const json::object& config) {
  GptqZeros zeros;
  const json::object* object = QuantizationObject(config);
  if (object == nullptr) return zeros;
  zeros.minus_one = MemberString(*object, "checkpoint_format") != "gptq_v2";
  const json::value* symmetric = object->if_contains("sym");
  zeros.symmetric = symmetric != nullptr && symmetric->is_bool() && symmetric->get_bool();
  return zeros;
}

std::pair<int64_t, int64_t> ConfiguredFp8Block(const json::object& config) {
  const json::object* object = QuantizationObject(config);
  if (object == nullptr) return {0, 0};
  const auto block = BlockSize(object->if_contains("weight_block_size"));
  if (block.first > 0) return block;
  const auto* groups = MemberObject(*object, "config_groups");
  if (groups == nullptr) return {0, 0};
  for (const auto& member : *groups) {
    const auto* group = member.value().if_object();
    const auto* weights = group == nullptr ? nullptr : MemberObject(*group, "weights");
    if (weights == nullptr) continue;
    const auto structure = BlockSize(weights->if_contains("block_structure"));
    if (structure.first > 0) return structure;
  }
  return {0, 0};
}

}  // namespace nibble::formats
