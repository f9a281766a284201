#include "models/dummy_checkpoint.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <mutex>
#include <numeric>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/file.h"
#include "device/cpu.h"
#include "formats/hf_checkpoint.h"
#include "formats/json_file.h"
#include "formats/stored_formats.h"
#include "formats/weight_schemes.h"
#include "models/dummy_values.h"
#include "models/registry.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::models {
namespace {

namespace json = boost::json;
using formats::WeightLayout;
using formats::WeightScheme;
using formats::WeightSchemes;
using Kind = DummyValues::Kind;

constexpr int64_t kMaxTextBytes = int64_t{256} << 20;
constexpr size_t kLargeBytes = size_t{256} << 20;
constexpr int kHelpers = 8;

// E8M0 scales of 32 neighbouring powers of two, beside which activations of any size stay finite;
// their root mean square, the largest being 1.
constexpr uint8_t kPowerMask = 31;
constexpr double kPowerRms = 0.20412;
// Root mean square of 0 .. 15 less 8 and of 0 .. 255 less 128.
constexpr double kInt4Rms = 4.6368;
constexpr double kInt8Rms = 73.9002;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

DummyValues Floats(DType dtype, double centre, double spread) {
  return {.kind = Kind::kFloats,
          .dtype = dtype,
          .centre = static_cast<float>(centre),
          .spread = static_cast<float>(spread)};
}

DummyValues Constant(double value) { return Floats(DType::kF32, value, 0); }

// Scales spread over ± a half: their root mean square is 1.04 of the centre.
DummyValues Scales(DType dtype, double centre) { return Floats(dtype, centre, 0.5 * centre); }

DummyValues PowerScales(double rms) {
  const int largest = static_cast<int>(std::lround(std::log2(rms / kPowerRms)));
  return {.kind = Kind::kBytes,
          .base = static_cast<uint8_t>(127 + largest - kPowerMask),
          .mask = kPowerMask};
}

// What a linear's deviation should be.
double Deviation(int64_t k) {
  return 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(k, 1)));
}

// Memory that tensors are made in, used again when they are gone: fresh pages from the system cost
// more than the values. From any thread.
class TensorMemory : public std::enable_shared_from_this<TensorMemory> {
 public:
  std::shared_ptr<std::byte[]> Take(size_t bytes) {
    const size_t kind = std::bit_width(std::max<size_t>(bytes, 1) - 1);
    if (kind >= kKinds) return std::make_shared_for_overwrite<std::byte[]>(bytes);
    std::unique_ptr<std::byte[]> memory;
    {
      const std::lock_guard lock(mutex_);
      if (!free_[kind].empty()) {
        memory = std::move(free_[kind].back());
        free_[kind].pop_back();
      }
    }
    if (memory == nullptr) memory = std::make_unique_for_overwrite<std::byte[]>(size_t{1} << kind);
    return {memory.release(), [kind, owner = shared_from_this()](std::byte* used) {
              const std::lock_guard lock(owner->mutex_);
              owner->free_[kind].emplace_back(used);
            }};
  }

 private:
  static constexpr size_t kKinds = 28;  // powers of two up to 128 MiB

  std::mutex mutex_;
  std::array<std::vector<std::unique_ptr<std::byte[]>>, kKinds> free_;
};

class DummyCheckpoint final : public formats::Checkpoint, public WeightVisitor {
 public:
  DummyCheckpoint(std::string path, json::object config, WeightSchemes schemes,
                  const DummyOptions& options)
      : options_(options), schemes_(std::move(schemes)) {
    path_ = std::move(path);
    config_ = std::move(config);
    scaled_cache_ = schemes_.config().kv_cache == "fp8";
  }

  // A folder whose texts are read where there are any.
  void SetFolder(const std::string& folder) { folder_ = folder; }

  // ---- the walk that lists the tensors

  void VisitLinear(const std::vector<LinearPart>& parts, int64_t k, Bias bias, Linear*,
                   ColumnRange) override {
    for (const LinearPart& part : parts) {
      // A weight whose rows are taken in two goes is stored once.
      if (!listed_.insert(part.prefix).second) continue;
      AddLinear(part.prefix, part.n, k);
      if (bias == Bias::kRequired) AddBias(part.prefix + ".bias", {part.n});
    }
  }

  // Left wide, as exporters leave it. Its logits spread so far that the last of a token's experts
  // weighs little: two runs may differ in which one that is.
  void VisitRouter(const std::string& prefix, int64_t n, int64_t k, Bias bias, Linear*) override {
    Add(prefix + ".weight", DType::kBF16, {n, k},
        Floats(DType::kBF16, 0, 4 * std::sqrt(3.0) * Deviation(k)));
    if (bias == Bias::kRequired) AddBias(prefix + ".bias", {n});
  }

  void VisitHeadLinears(const HeadLinears& heads, std::vector<Linear>*) override {
    VisitLinear({{heads.prefix, heads.n, {}}}, heads.k, Bias::kNone, nullptr, {});
  }

  void VisitExperts(const ExpertsSpec& spec, std::vector<Expert>*) override {
    const WeightScheme scheme = SchemeOf(spec.prefix + ".0.up_proj");
    if (scheme.kind == "mxfp4" && scheme.layout == WeightLayout::kTransformers)
      return AddBlocks(spec);
    const Bias bias = spec.bias ? Bias::kRequired : Bias::kNone;
    for (int64_t e = 0; e < spec.experts; ++e) {
      const std::string prefix = fmt::format("{}.{}.", spec.prefix, e);
      if (spec.gated) VisitLinear({{prefix + "gate_proj", spec.f, {}}}, spec.d, bias, nullptr, {});
      VisitLinear({{prefix + "up_proj", spec.f, {}}}, spec.d, bias, nullptr, {});
      VisitLinear({{prefix + "down_proj", spec.d, {}}}, spec.f, bias, nullptr, {});
    }
  }

  void VisitEmbedding(const std::string& name, int64_t v, int64_t d, bool, Linear*) override {
    AddWide(name, v, d);
  }

  void VisitVector(const std::string& name, int64_t n, Resident<float>*, int64_t,
                   const std::vector<RowRange>&) override {
    if (listed_.insert(name).second) Add(name, DType::kBF16, {n}, Floats(DType::kBF16, 1.0, 0.2));
  }

  // Scales of the KV cache, where the config has one in FP8. Draft heads have none.
  void VisitScalar(const std::vector<std::string>& names, float*) override {
    if (scaled_cache_ && section() != Section::kDraft && listed_.insert(names.front()).second)
      Add(names.front(), DType::kF32, {}, Constant(1.0));
  }

  void Ignore(std::string_view) override {}
  void IgnorePrefix(std::string_view) override {}

  // Sorts what the walk has listed.
  void Finish() {
    std::vector<size_t> order(entries_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::sort(order, {}, [&](size_t i) -> const std::string& { return entries_[i].name; });
    std::vector<formats::TensorEntry> sorted;
    std::vector<DummyValues> values;
    sorted.reserve(order.size());
    values.reserve(order.size());
    for (const size_t i : order) {
      sorted.push_back(std::move(entries_[i]));
      values.push_back(values_[i]);
    }
    entries_ = {};
    listed_ = {};
    values_ = std::move(values);
    SetTensors(std::move(sorted));
  }

  // ---- Checkpoint

  Result<std::string> ReadText(std::string_view name) const override {
    if (name == "config.json") return json::serialize(config_);
    // Under another policy the formats are not what that file says.
    const bool replaced = name == "hf_quant_config.json" && IsOverridden();
    if (folder_.empty() || replaced || name.find('/') != name.npos)
      return Fail(Code::kNotFound, "{}: dummy weights come without {}", path_, name);
    return ReadFile(folder_ + "/" + std::string(name), kMaxTextBytes);
  }

  using Checkpoint::Read;
  Result<formats::TensorData> Read(const formats::TensorEntry& entry) const override {
    return Make(entry, entry.shape, 0);
  }

  Result<formats::TensorData> ReadSlice(const formats::TensorEntry& entry, int64_t begin,
                                        int64_t count) const override {
    Shape shape = {count};
    for (int axis = 1; axis < entry.shape.rank(); ++axis) shape.Append(entry.shape[axis]);
    const int64_t row = entry.shape.elements() / entry.shape[0];
    return Make(entry, shape, begin * row);
  }

  const MadeUpBytes* MadeUp(const formats::TensorEntry& entry) const override {
    const formats::TensorEntry* own = Find(entry.name);
    return own == nullptr ? nullptr : &values_[static_cast<size_t>(own - tensors_.data())];
  }

 private:
  bool IsOverridden() const {
    return options_.policy != DummyPolicy::kAsConfigured || options_.linear_format;
  }

  Result<formats::TensorData> Make(const formats::TensorEntry& entry, const Shape& shape,
                                   int64_t first_element) const {
    const formats::TensorEntry* own = Find(entry.name);
    if (own == nullptr) return Fail(Code::kNotFound, "{}: no tensor {}", path_, entry.name);
    const int64_t bits = DTypeBits(entry.dtype);
    // Not zeroed: every byte is written below.
    const auto size = static_cast<size_t>(shape.elements() * bits / 8);
    const std::shared_ptr<std::byte[]> bytes = memory_->Take(size);
    // Where tensors are made side by side the few large ones would be the last to be ready.
    std::optional<ThreadPool> helpers;
    ThreadPool* pool = options_.pool;
    if (pool == nullptr && size >= kLargeBytes)
      pool = &helpers.emplace(std::min(kHelpers, GetCpuInfo().usable_cores));
    FillDummy(values_[static_cast<size_t>(own - tensors_.data())], first_element * bits / 8,
              {bytes.get(), size}, pool);
    return formats::TensorData{{bytes.get(), entry.dtype, shape}, bytes};
  }

  WeightScheme SchemeOf(const std::string& module) const {
    if (options_.linear_format) {
      return module == "lm_head" ? WeightScheme{} : SchemeOf(options_);
    }
    WeightScheme scheme = schemes_.Of(module);
    if (options_.policy == DummyPolicy::kAsConfigured) return scheme;
    if (scheme.kind == "nvfp4" || scheme.kind == "mxfp4" ||
        (scheme.kind == "int" && scheme.bits == 4))
      return scheme;
    return formats::IsAlwaysWide(module) ? WeightScheme{} : WeightScheme{.kind = "nvfp4"};
  }

  static WeightScheme SchemeOf(const DummyOptions& options) {
    switch (*options.linear_format) {
      case WeightFormat::kNvfp4:
        return {.kind = "nvfp4", .input_scale = options.activation_scales};
      case WeightFormat::kMxfp4:
        return {.kind = "mxfp4"};
      case WeightFormat::kFp8:
        return {.kind = "fp8",
                .layout = WeightLayout::kTransformers,
                .block_rows = 128,
                .block_columns = 128};
      case WeightFormat::kInt4:
        return {.kind = "int", .layout = WeightLayout::kCompressedTensors, .bits = 4, .group = 128};
      default:
        return {};
    }
  }

  void Add(const std::string& name, DType dtype, Shape shape, DummyValues values) {
    values.stream = DummyStream(options_.seed, name);
    entries_.push_back({.name = name,
                        .dtype = dtype,
                        .shape = shape,
                        .stored_bytes = shape.elements() * DTypeBits(dtype) / 8,
                        .stored_as = std::string(DTypeName(dtype))});
    values_.push_back(values);
  }

  void AddWide(const std::string& name, int64_t n, int64_t k) {
    Add(name, DType::kBF16, {n, k}, Floats(DType::kBF16, 0, std::sqrt(3.0) * Deviation(k)));
  }

  void AddBias(const std::string& name, Shape shape) {
    Add(name, DType::kBF16, shape, Floats(DType::kBF16, 0, 0.2));
  }

  // As exporters do, a weight whose sizes the format cannot hold stays wide.
  void AddLinear(const std::string& prefix, int64_t n, int64_t k) {
    const WeightScheme scheme = SchemeOf(prefix);
    if (scheme.kind == "nvfp4" && k % kNvfp4Block == 0) return AddNvfp4(prefix, scheme, n, k);
    if (scheme.kind == "mxfp4" && k % kMxfp4Block == 0) return AddMxfp4(prefix, scheme, n, k);
    if (scheme.kind == "mxfp8" && k % kMxfp4Block == 0) return AddMxfp8(prefix, n, k);
    if (scheme.kind == "fp8") return AddFp8(prefix, scheme, n, k);
    if (scheme.kind == "int" && n % 8 == 0 && k % 8 == 0) return AddIntegers(prefix, scheme, n, k);
    AddWide(prefix + ".weight", n, k);
  }

  void AddNvfp4(const std::string& prefix, const WeightScheme& scheme, int64_t n, int64_t k) {
    const bool packed = scheme.layout == WeightLayout::kCompressedTensors;
    const std::string stem = prefix + ".weight";
    const double global = Deviation(k) / (RmsOfE2m1Codes() * RmsOfE4m3Codes());
    Add(packed ? stem + "_packed" : stem, DType::kU8, {n, k / 2}, {.kind = Kind::kBits});
    Add(stem + "_scale", DType::kF8E4M3, {n, k / kNvfp4Block}, {.kind = Kind::kE4m3Scales});
    // compressed-tensors stores divisors.
    if (packed) {
      Add(stem + "_global_scale", DType::kF32, {1}, Constant(1.0 / global));
    } else {
      Add(stem + "_scale_2", DType::kF32, {}, Constant(global));
    }
    if (!scheme.input_scale) return;
    Add(prefix + (packed ? ".input_global_scale" : ".input_scale"), DType::kF32,
        packed ? Shape{1} : Shape{}, Constant(packed ? 448.0 : 1.0 / 448.0));
  }

  void AddMxfp4(const std::string& prefix, const WeightScheme& scheme, int64_t n, int64_t k) {
    const bool packed = scheme.layout == WeightLayout::kCompressedTensors;
    Add(prefix + (packed ? ".weight_packed" : ".weight"), DType::kU8, {n, k / 2},
        {.kind = Kind::kBits});
    Add(prefix + ".weight_scale", DType::kU8, {n, k / kMxfp4Block},
        PowerScales(Deviation(k) / RmsOfE2m1Codes()));
  }

  void AddMxfp8(const std::string& prefix, int64_t n, int64_t k) {
    Add(prefix + ".weight", DType::kF8E4M3, {n, k}, {.kind = Kind::kE4m3Codes});
    Add(prefix + ".weight_scale", DType::kU8, {n, k / kMxfp4Block},
        PowerScales(Deviation(k) / RmsOfE4m3Codes()));
  }

  void AddFp8(const std::string& prefix, const WeightScheme& scheme, int64_t n, int64_t k) {
    const std::string stem = prefix + ".weight";
    const double scale = Deviation(k) / RmsOfE4m3Codes();
    Add(stem, DType::kF8E4M3, {n, k}, {.kind = Kind::kE4m3Codes});
    if (scheme.block_rows > 0) {
      const Shape grid = {CeilDiv(n, scheme.block_rows), CeilDiv(k, scheme.block_columns)};
      if (scheme.layout == WeightLayout::kTransformers) {
        Add(stem + "_scale_inv", DType::kF32, grid, Scales(DType::kF32, scale));
      } else if (scheme.layout == WeightLayout::kModelOpt) {
        Add(stem + "_scale", DType::kF32, {grid[0], 1, grid[1], 1}, Scales(DType::kF32, scale));
      } else {
        Add(stem + "_scale", DType::kBF16, grid, Scales(DType::kBF16, scale));
      }
    } else if (scheme.per_row) {
      Add(stem + "_scale", DType::kF32, {n, 1}, Scales(DType::kF32, scale));
    } else {
      Add(stem + "_scale", DType::kF32, {}, Constant(scale));
    }
    if (scheme.input_scale) Add(prefix + ".input_scale", DType::kF32, {}, Constant(1.0 / 448.0));
  }

  void AddIntegers(const std::string& prefix, const WeightScheme& scheme, int64_t n, int64_t k) {
    const int64_t group = scheme.group > 0 ? scheme.group : k;
    const int64_t groups = CeilDiv(k, group);
    const int64_t per_word = 32 / scheme.bits;
    const double scale = Deviation(k) / (scheme.bits == 4 ? kInt4Rms : kInt8Rms);
    const DummyValues bits{.kind = Kind::kBits};
    switch (scheme.layout) {
      case WeightLayout::kModelOpt:
        if (scheme.bits == 4) {
          Add(prefix + ".weight", DType::kU8, {n / 2, k}, bits);
        } else {
          Add(prefix + ".weight", DType::kI8, {n, k}, bits);
        }
        Add(prefix + ".weight_scale", DType::kF32, {n, groups}, Scales(DType::kF32, scale));
        return;
      case WeightLayout::kTransformers:
      case WeightLayout::kCompressedTensors:
        Add(prefix + ".weight_packed", DType::kI32, {n, k / per_word}, bits);
        Add(prefix + ".weight_scale", DType::kBF16, {n, groups}, Scales(DType::kBF16, scale));
        Add(prefix + ".weight_shape", DType::kI64, {2},
            {.kind = Kind::kPair, .first = n, .second = k});
        return;
      case WeightLayout::kAwq:
        Add(prefix + ".qweight", DType::kI32, {k, n / per_word}, bits);
        Add(prefix + ".qzeros", DType::kI32, {groups, n / per_word}, Zeros(scheme.bits, 0));
        break;
      case WeightLayout::kGptq:
        Add(prefix + ".qweight", DType::kI32, {k / per_word, n}, bits);
        Add(prefix + ".qzeros", DType::kI32, {groups, n / per_word}, Zeros(scheme.bits, 1));
        Add(prefix + ".g_idx", DType::kI32, {k}, {.kind = Kind::kQuotient, .first = group});
        break;
    }
    Add(prefix + ".scales", DType::kF16, {groups, n}, Scales(DType::kF16, scale));
  }

  // Zero points around the middle, less what is stored less.
  static DummyValues Zeros(int64_t bits, int less) {
    if (bits == 4)
      return {.kind = Kind::kNibbles, .base = static_cast<uint8_t>(8 - 2 * less), .mask = 1};
    return {.kind = Kind::kBytes, .base = static_cast<uint8_t>(128 - 2 * less), .mask = 1};
  }

  // gpt-oss: all experts of a layer in one tensor of blocks per projection pair.
  void AddBlocks(const ExpertsSpec& spec) {
    const auto add = [&](const std::string& name, int64_t n, int64_t k) {
      const std::string stem = fmt::format("{}.{}", spec.prefix, name);
      constexpr int64_t kBlockBytes = kMxfp4Block / 2;
      Add(stem + "_blocks", DType::kU8, {spec.experts, n, k / kMxfp4Block, kBlockBytes},
          {.kind = Kind::kBits});
      Add(stem + "_scales", DType::kU8, {spec.experts, n, k / kMxfp4Block},
          PowerScales(Deviation(k) / RmsOfE2m1Codes()));
      if (spec.bias) AddBias(stem + "_bias", {spec.experts, n});
    };
    add("gate_up_proj", spec.gated ? 2 * spec.f : spec.f, spec.d);
    add("down_proj", spec.d, spec.f);
  }

  const DummyOptions options_;
  const std::shared_ptr<TensorMemory> memory_ = std::make_shared<TensorMemory>();
  const WeightSchemes schemes_;
  bool scaled_cache_ = false;
  std::string folder_;
  std::vector<formats::TensorEntry> entries_;  // while listing
  std::vector<DummyValues> values_;            // while listing as entries_, then as tensors_
  std::unordered_set<std::string> listed_;     // while listing: prefixes of linears, vectors
};

// The config that goes with a policy: what it says of formats is what is stored.
json::object PolicyConfig(const json::object& config, const WeightSchemes& schemes) {
  json::object result = config;
  result.erase("compression_config");
  if (auto* text = result.if_contains("text_config"); text != nullptr && text->is_object())
    text->get_object().erase("quantization_config");
  json::object quantization = {{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}};
  if (schemes.config().kv_cache == "fp8")
    quantization["kv_cache_scheme"] = {{"num_bits", 8}, {"type", "float"}, {"dynamic", false}};
  result["quantization_config"] = std::move(quantization);
  return result;
}

// Of the first layers alone: lists and patterns of an entry per layer are as long as there are.
void KeepLayers(int64_t layers, json::object* config) {
  if (auto* text = config->if_contains("text_config"); text != nullptr && text->is_object())
    KeepLayers(layers, &text->get_object());
  auto* stored = config->if_contains("num_hidden_layers");
  if (stored == nullptr || !stored->is_int64() || stored->get_int64() <= layers) return;
  const auto all = static_cast<size_t>(stored->get_int64());
  *stored = layers;
  for (auto& [name, value] : *config) {
    if (value.is_array() && value.get_array().size() == all)
      value.get_array().resize(static_cast<size_t>(layers));
    if (value.is_string() && value.get_string().size() == all)
      value.get_string().resize(static_cast<size_t>(layers));
  }
}

Result<std::unique_ptr<DummyCheckpoint>> Make(const std::string& path, json::object config,
                                              const DummyOptions& options,
                                              const json::object* hf_quant) {
  if (options.layers > 0) KeepLayers(options.layers, &config);
  if (options.linear_format == WeightFormat::kF32 || options.linear_format == WeightFormat::kF16 ||
      options.linear_format == WeightFormat::kInt8) {
    return Fail(Code::kUnsupported, "dummy weights are nvfp4, mxfp4, fp8, int4 or bf16, not {}",
                WeightFormatName(*options.linear_format));
  }
  NIBBLE_ASSIGN(const std::unique_ptr<LoadableModel> model,
                BuildModel(config, {.draft = options.draft}));
  WeightSchemes schemes = WeightSchemes::Parse(config, hf_quant);
  json::object described =
      options.policy == DummyPolicy::kAllFourBit ? PolicyConfig(config, schemes) : config;
  auto checkpoint =
      std::make_unique<DummyCheckpoint>(path, std::move(described), std::move(schemes), options);
  model->VisitWeights(*checkpoint);
  checkpoint->Finish();
  return checkpoint;
}

}  // namespace

Result<std::unique_ptr<formats::Checkpoint>> MakeDummyCheckpoint(const json::object& config,
                                                                 const DummyOptions& options,
                                                                 const json::object* hf_quant) {
  return Make("dummy", config, options, hf_quant);
}

Result<std::unique_ptr<formats::Checkpoint>> OpenDummyCheckpoint(const std::string& folder,
                                                                 const DummyOptions& options,
                                                                 const std::string& quantization) {
  NIBBLE_ASSIGN(const json::object config, formats::ReadHfConfig(folder));
  const std::string hf_quant_path = folder + "/hf_quant_config.json";
  std::optional<json::object> hf_quant;
  if (FileExists(hf_quant_path)) {
    NIBBLE_ASSIGN(const std::string text, ReadFile(hf_quant_path, kMaxTextBytes));
    NIBBLE_ASSIGN(hf_quant, formats::ParseJsonObject(text, hf_quant_path));
  }
  DummyOptions published = options;
  published.draft = true;
  NIBBLE_ASSIGN(std::unique_ptr<DummyCheckpoint> checkpoint,
                Make(folder, config, published, hf_quant ? &*hf_quant : nullptr));
  checkpoint->SetFolder(folder);
  NIBBLE_TRY(formats::CheckStoredFormats(*checkpoint, quantization));
  return checkpoint;
}

}  // namespace nibble::models
