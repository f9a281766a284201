#include "formats/stored_formats.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "base/log.h"
#include "formats/json_file.h"
#include "formats/quantization_config.h"
#include "numerics/mxfp4.h"

namespace nibble::formats {
namespace {

// Pattern matches that the summary line may cost.
constexpr size_t kMaxComparisons = 20'000'000;

struct FlagMeaning {
  std::string_view name;
  std::array<std::string_view, 5> kinds;  // any of these; none: nothing quantised
};

constexpr FlagMeaning kFlags[] = {
    {"nvfp4", {"nvfp4"}},
    {"modelopt_fp4", {"nvfp4"}},
    {"modelopt", {"nvfp4", "fp8", "mxfp8", "mxfp4", "int"}},
    {"modelopt_mixed", {"nvfp4", "fp8", "mxfp8", "mxfp4", "int"}},
    {"modelopt_mxfp8", {"mxfp8"}},
    {"compressed-tensors", {"nvfp4", "fp8", "mxfp8", "mxfp4", "int"}},
    {"mxfp4", {"mxfp4"}},
    {"gpt_oss_mxfp4", {"mxfp4"}},
    {"fp8", {"fp8"}},
    {"fbgemm_fp8", {"fp8"}},
    {"mxfp8", {"mxfp8"}},
    {"awq", {"awq"}},
    {"awq_marlin", {"awq"}},
    {"gptq", {"gptq"}},
    {"gptq_marlin", {"gptq"}},
    {"auto-round", {"gptq", "awq", "int"}},
    {"bf16", {}},
    {"none", {}},
};

// Kinds that a config does not tell apart reliably: what is stored decides within a family.
std::string_view FamilyOf(std::string_view kind) {
  if (kind == "mxfp8") return "fp8";
  if (kind == "awq" || kind == "gptq") return "int";
  return kind;
}

bool IsQuantized(std::string_view kind) {
  const std::string_view family = FamilyOf(kind);
  return family == "nvfp4" || family == "mxfp4" || family == "fp8" || family == "int";
}

// A weight's kind and, where it is quantised, the tensor with its block scales.
struct Weight {
  std::string_view kind;  // "" if the tensor is no weight
  const TensorEntry* scale = nullptr;
};

Weight ByteWeight(const TensorEntry* scale) {
  if (scale == nullptr) return {"int", nullptr};
  if (scale->dtype == DType::kF8E4M3) return {"nvfp4", scale};
  if (scale->dtype == DType::kU8 || scale->dtype == DType::kF8E8M0) return {"mxfp4", scale};
  return {"int", scale};
}

Weight WideWeight(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return {"bf16"};
    case DType::kF16:
      return {"f16"};
    case DType::kF32:
      return {"f32"};
    default:
      return {};
  }
}

// AutoAWQ keeps eight columns in a word, GPTQ rows of K.
Weight WordWeight(const Checkpoint& checkpoint, const TensorEntry& words) {
  const std::string stem =
      words.name.substr(0, words.name.size() - std::string_view("qweight").size());
  const TensorEntry* scales = checkpoint.Find(stem + "scales");
  const bool is_gptq =
      scales != nullptr && scales->shape.rank() == 2 && scales->shape[1] == words.shape[1];
  return {is_gptq ? "gptq" : "awq", scales};
}

// MXFP8 has a power of two for 32 columns of a row.
Weight Fp8Weight(const TensorEntry& weight, const TensorEntry* scale) {
  const bool is_mx = scale != nullptr &&
                     (scale->dtype == DType::kU8 || scale->dtype == DType::kF8E8M0) &&
                     scale->shape.elements() * kMxfp4Block == weight.shape.elements();
  return {is_mx ? "mxfp8" : "fp8", scale};
}

Weight ClassifyWeight(const Checkpoint& checkpoint, const TensorEntry& entry) {
  if (entry.shape.rank() < 2) return {};
  const std::string& name = entry.name;
  if (name.ends_with(".qweight")) return WordWeight(checkpoint, entry);
  if (name.ends_with("_blocks") && entry.dtype == DType::kU8) {
    const std::string stem = name.substr(0, name.size() - std::string_view("blocks").size());
    return {"mxfp4", checkpoint.Find(stem + "scales")};
  }
  if (name.ends_with(".weight_packed")) {
    const std::string stem = name.substr(0, name.size() - std::string_view("packed").size());
    if (entry.dtype != DType::kU8) return {"int", checkpoint.Find(stem + "scale")};
    return ByteWeight(checkpoint.Find(stem + "scale"));
  }
  // Stacked experts have no ".weight" of their own.
  const bool stacked = entry.shape.rank() == 3 && name.ends_with("_proj");
  if (!name.ends_with(".weight") && !stacked) return {};
  switch (entry.dtype) {
    case DType::kU8:
      return ByteWeight(checkpoint.Find(name + (stacked ? "_weight_scale" : "_scale")));
    case DType::kF8E4M3:
    case DType::kF8E5M2: {
      const TensorEntry* scale = checkpoint.Find(name + (stacked ? "_weight_scale" : "_scale"));
      return Fp8Weight(entry, scale != nullptr ? scale : checkpoint.Find(name + "_scale_inv"));
    }
    case DType::kI8:
    case DType::kI32:
      return {"int", checkpoint.Find(name + "_scale")};
    default:
      return WideWeight(entry.dtype);
  }
}

const StoredFormat* FindKind(std::span<const StoredFormat> stored, std::string_view kind) {
  for (const StoredFormat& format : stored) {
    if (format.kind == kind) return &format;
  }
  return nullptr;
}

std::string Describe(std::span<const StoredFormat> stored) {
  std::string text;
  for (const StoredFormat& format : stored) {
    text += fmt::format("{}{} {} (such as {})", text.empty() ? "" : ", ", format.weights,
                        format.kind, Quoted(format.example));
  }
  return text.empty() ? "no weights" : text;
}

std::string Describe(const QuantizationConfig& config) {
  std::string text;
  for (const auto& named : config.formats) {
    text += fmt::format("{}{} says {}", text.empty() ? "" : ", ", named.file, named.spelled);
  }
  return text.empty() ? "config.json names no quantization" : text;
}

Status CheckFlag(const Checkpoint& checkpoint, std::string_view flag,
                 std::span<const StoredFormat> stored, const QuantizationConfig& config) {
  const auto* meaning = std::find_if(std::begin(kFlags), std::end(kFlags),
                                     [&](const FlagMeaning& known) { return known.name == flag; });
  if (meaning == std::end(kFlags)) {
    return Fail(Code::kInvalidArgument, "--quantization {}: unknown; one of {}", flag,
                KnownQuantizationNames());
  }
  const bool wants_wide = meaning->kinds[0].empty();
  const bool agrees =
      wants_wide
          ? std::none_of(stored.begin(), stored.end(),
                         [](const StoredFormat& format) { return IsQuantized(format.kind); })
          : std::any_of(meaning->kinds.begin(), meaning->kinds.end(), [&](std::string_view kind) {
              return !kind.empty() && FindKind(stored, kind) != nullptr;
            });
  if (agrees) return {};
  return Fail(Code::kInvalidArgument,
              "--quantization {}: {} stores {}; {}. What is stored is used: drop the flag", flag,
              checkpoint.path(), Describe(stored), Describe(config));
}

Status CheckConfig(const Checkpoint& checkpoint, std::span<const StoredFormat> stored,
                   const QuantizationConfig& config) {
  for (const auto& named : config.formats) {
    const bool is_stored = std::ranges::any_of(stored, [&](const StoredFormat& format) {
      return FamilyOf(format.kind) == FamilyOf(named.kind);
    });
    if (is_stored) continue;
    return Fail(Code::kCorruption,
                "{}: {} names the format {}, but no weight is stored so; stored are {}. Files of "
                "two checkpoints may be mixed; without the entry in {} the weights load as stored",
                checkpoint.path(), named.file, named.spelled, Describe(stored), named.file);
  }
  return {};
}

bool IsEmbedding(std::string_view name) {
  return name.find("embed") != name.npos || name.find("wte") != name.npos;
}

// One line about the weights that the config wants quantised and that are stored wide.
void ReportWiderWeights(const Checkpoint& checkpoint, std::span<const StoredFormat> stored,
                        const QuantizationConfig& config) {
  if (config.formats.empty()) return;
  int64_t wide_weights = 0;
  for (const StoredFormat& format : stored) {
    if (!IsQuantized(format.kind)) wide_weights += format.weights;
  }
  const size_t patterns = config.ignored.size() + config.only.size() + 1;
  if (static_cast<size_t>(wide_weights) > kMaxComparisons / patterns) return;
  constexpr std::string_view kSuffix = ".weight";
  int64_t count = 0;
  std::string example;
  for (const TensorEntry& entry : checkpoint.tensors()) {
    if (entry.shape.rank() != 2 || WideWeight(entry.dtype).kind.empty()) continue;
    if (!entry.name.ends_with(kSuffix) || IsEmbedding(entry.name)) continue;
    const std::string_view module(entry.name.data(), entry.name.size() - kSuffix.size());
    if (!config.NamesModule(module)) continue;
    if (count++ == 0) example = entry.name;
  }
  if (count == 0) return;
  LogInfo("{}: {} weights are stored in 16 or 32 bits though {} (first: {}); used as stored",
          checkpoint.path(), count, Describe(config), Quoted(example));
}

}  // namespace

std::vector<StoredFormat> CountStoredFormats(const Checkpoint& checkpoint) {
  std::vector<StoredFormat> stored;
  for (const TensorEntry& entry : checkpoint.tensors()) {
    const Weight weight = ClassifyWeight(checkpoint, entry);
    if (weight.kind.empty()) continue;
    auto at = std::find_if(stored.begin(), stored.end(),
                           [&](const StoredFormat& format) { return format.kind == weight.kind; });
    if (at == stored.end()) {
      at = stored.insert(stored.end(), {std::string(weight.kind), 0, 0, entry.name});
    }
    at->weights += 1;
    at->bytes += entry.stored_bytes + (weight.scale != nullptr ? weight.scale->stored_bytes : 0);
  }
  std::stable_sort(stored.begin(), stored.end(),
                   [](const StoredFormat& a, const StoredFormat& b) { return a.bytes > b.bytes; });
  return stored;
}

Status CheckStoredFormats(const Checkpoint& checkpoint, std::string_view flag) {
  NIBBLE_ASSIGN(const QuantizationConfig config, ReadQuantizationConfig(checkpoint));
  const std::vector<StoredFormat> stored = CountStoredFormats(checkpoint);
  if (!flag.empty()) NIBBLE_TRY(CheckFlag(checkpoint, flag, stored, config));
  NIBBLE_TRY(CheckConfig(checkpoint, stored, config));
  if (!config.unknown.empty()) {
    LogWarning("{}: the quantization {} is not known here; formats are taken from the tensors",
               checkpoint.path(), Quoted(config.unknown.front()));
  }
  ReportWiderWeights(checkpoint, stored, config);
  return {};
}

std::string KnownQuantizationNames() {
  std::string names;
  for (const FlagMeaning& flag : kFlags) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", flag.name);
  }
  return names;
}

}  // namespace nibble::formats
