#include "models/dummy_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "models/registry.h"
#include "numerics/bf16.h"
#include "numerics/nvfp4.h"

namespace nibble::models {
namespace {

// A 64-bit mix (the finaliser of splitmix64): every input bit reaches every output bit.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t HashName(const std::string& name) {  // FNV-1a
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  return hash;
}

// Uniform in [-1, 1).
float Noise(uint64_t stream, int64_t index) {
  return static_cast<float>(
      static_cast<double>(Mix(stream ^ Mix(static_cast<uint64_t>(index))) >> 11) * 0x1p-52 - 1.0);
}

struct Recipe {
  enum class Kind {
    kLinear,
    kRouter,
    kVector,
    kNormVector,
    kNvfp4Codes,
    kNvfp4Scales,
    kNvfp4GlobalScale
  } kind;
  int64_t n = 0;
  int64_t k = 0;
  uint64_t stream = 0;
};

class DummyCheckpoint final : public formats::Checkpoint, public WeightVisitor {
 public:
  DummyCheckpoint(const boost::json::object& config, const DummyOptions& options)
      : options_(options) {
    path_ = "dummy";
    config_ = config;
  }

  // ---- the walk that lists the tensors

  void VisitLinear(const std::vector<LinearPart>& parts, int64_t k, Bias bias, Linear*,
                   ColumnRange) override {
    for (const LinearPart& part : parts) {
      // A weight whose rows are taken in two goes is stored once.
      if (!listed_.insert(part.prefix).second) continue;
      const bool quantised =
          options_.linear_format == WeightFormat::kNvfp4 && part.prefix != "lm_head";
      if (quantised) {
        AddNvfp4(part.prefix, part.n, k);
      } else {
        Add(part.prefix + ".weight", DType::kBF16, {part.n, k}, {Recipe::Kind::kLinear, part.n, k});
      }
      if (bias == Bias::kRequired) {
        Add(part.prefix + ".bias", DType::kBF16, {part.n}, {Recipe::Kind::kVector, part.n, 1});
      }
    }
  }

  // Left wide, as exporters leave it. Its logits spread so far that the last of a token's experts
  // weighs little: two runs may differ in which one that is.
  void VisitRouter(const std::string& prefix, int64_t n, int64_t k, Bias bias, Linear*) override {
    Add(prefix + ".weight", DType::kBF16, {n, k}, {Recipe::Kind::kRouter, n, k});
    if (bias == Bias::kRequired)
      Add(prefix + ".bias", DType::kBF16, {n}, {Recipe::Kind::kVector, n, 1});
  }

  void VisitHeadLinears(const HeadLinears& heads, std::vector<Linear>*) override {
    VisitLinear({{heads.prefix, heads.n, {}}}, heads.k, Bias::kNone, nullptr, {});
  }

  void VisitExperts(const ExpertsSpec& spec, std::vector<Expert>*) override {
    const Bias bias = spec.bias ? Bias::kRequired : Bias::kNone;
    for (int64_t e = 0; e < spec.experts; ++e) {
      const std::string prefix = fmt::format("{}.{}.", spec.prefix, e);
      if (spec.gated) VisitLinear({{prefix + "gate_proj", spec.f, {}}}, spec.d, bias, nullptr, {});
      VisitLinear({{prefix + "up_proj", spec.f, {}}}, spec.d, bias, nullptr, {});
      VisitLinear({{prefix + "down_proj", spec.d, {}}}, spec.f, bias, nullptr, {});
    }
  }

  void VisitEmbedding(const std::string& name, int64_t v, int64_t d, bool, Linear*) override {
    Add(name, DType::kBF16, {v, d}, {Recipe::Kind::kLinear, v, d});
  }

  void VisitVector(const std::string& name, int64_t n, std::vector<float>*, int64_t,
                   const std::vector<RowRange>&) override {
    Add(name, DType::kBF16, {n}, {Recipe::Kind::kNormVector, n, 1});
  }

  void VisitScalar(const std::vector<std::string>&, float*) override {}
  void Ignore(std::string_view) override {}
  void IgnorePrefix(std::string_view) override {}

  void Finish() { std::ranges::sort(tensors_, {}, &formats::TensorEntry::name); }

  // ---- Checkpoint

  Result<std::string> ReadText(std::string_view name) const override {
    if (name == "config.json") return boost::json::serialize(config_);
    return Fail(Code::kNotFound, "a dummy checkpoint has no {}", name);
  }

  Result<formats::TensorData> Read(const formats::TensorEntry& entry) const override {
    const auto bytes = std::make_shared<std::vector<std::byte>>(entry.stored_bytes);
    Fill(recipes_.at(entry.name), bytes->data());
    return formats::TensorData{{bytes->data(), entry.dtype, entry.shape}, bytes};
  }

 private:
  void Add(const std::string& name, DType dtype, Shape shape, Recipe recipe) {
    recipe.stream = Mix(options_.seed ^ HashName(name));
    AddEntry(name, dtype, shape, recipe);
  }

  void AddEntry(const std::string& name, DType dtype, Shape shape, const Recipe& recipe) {
    tensors_.push_back({.name = name,
                        .dtype = dtype,
                        .shape = shape,
                        .stored_bytes = shape.elements() * DTypeBits(dtype) / 8,
                        .stored_as = std::string(DTypeName(dtype))});
    recipes_[name] = recipe;
  }

  // Three tensors from one stream, named as ModelOpt names them.
  void AddNvfp4(const std::string& prefix, int64_t n, int64_t k) {
    using Kind = Recipe::Kind;
    const std::string name = prefix + ".weight";
    Add(name, DType::kU8, {n, k / 2}, {Kind::kNvfp4Codes, n, k});
    Add(name + "_scale", DType::kF8E4M3, {n, k / kNvfp4Block}, {Kind::kNvfp4Scales, n, k});
    Add(name + "_scale_2", DType::kF32, {}, {Kind::kNvfp4GlobalScale, n, k});
  }

  static void Fill(const Recipe& recipe, std::byte* out) {
    const float deviation = std::sqrt(3.0f / static_cast<float>(std::max<int64_t>(recipe.k, 1)));
    auto* bf16 = reinterpret_cast<uint16_t*>(out);
    auto* bytes = reinterpret_cast<uint8_t*>(out);
    switch (recipe.kind) {
      case Recipe::Kind::kLinear:
        for (int64_t i = 0; i < recipe.n * recipe.k; ++i) {
          bf16[i] = Bf16FromFloat(deviation * Noise(recipe.stream, i));
        }
        break;
      case Recipe::Kind::kRouter:
        for (int64_t i = 0; i < recipe.n * recipe.k; ++i)
          bf16[i] = Bf16FromFloat(4 * deviation * Noise(recipe.stream, i));
        break;
      case Recipe::Kind::kVector:
        for (int64_t i = 0; i < recipe.n; ++i)
          bf16[i] = Bf16FromFloat(0.2f * Noise(recipe.stream, i));
        break;
      case Recipe::Kind::kNormVector:
        for (int64_t i = 0; i < recipe.n; ++i)
          bf16[i] = Bf16FromFloat(1.0f + 0.2f * Noise(recipe.stream, i));
        break;
      case Recipe::Kind::kNvfp4Codes:
        for (int64_t i = 0; i < recipe.n * recipe.k / 2; ++i) {
          bytes[i] = static_cast<uint8_t>(Mix(recipe.stream ^ static_cast<uint64_t>(i)));
        }
        break;
      case Recipe::Kind::kNvfp4Scales:
        for (int64_t i = 0; i < recipe.n * (recipe.k / kNvfp4Block); ++i) {
          bytes[i] = static_cast<uint8_t>(0x60 + Mix(recipe.stream ^ static_cast<uint64_t>(i)) %
                                                     0x18);  // 32..240
        }
        break;
      case Recipe::Kind::kNvfp4GlobalScale: {
        // Codes have a root mean square of 2.9 and block scales one of about 100.
        const float scale = 1.0f / (290.0f * std::sqrt(static_cast<float>(recipe.k)));
        std::copy_n(reinterpret_cast<const std::byte*>(&scale), sizeof(scale), out);
        break;
      }
    }
  }

  const DummyOptions options_;
  std::map<std::string, Recipe> recipes_;
  std::set<std::string> listed_;  // prefixes of linears
};

}  // namespace

Result<std::unique_ptr<formats::Checkpoint>> MakeDummyCheckpoint(const boost::json::object& config,
                                                                 const DummyOptions& options) {
  if (options.linear_format != WeightFormat::kNvfp4 &&
      options.linear_format != WeightFormat::kBf16) {
    return Fail(Code::kUnsupported, "dummy weights are nvfp4 or bf16, not {}",
                WeightFormatName(options.linear_format));
  }
  NIBBLE_ASSIGN(const std::unique_ptr<LoadableModel> model,
                BuildModel(config, {.draft = options.draft}));
  auto checkpoint = std::make_unique<DummyCheckpoint>(config, options);
  model->VisitWeights(*checkpoint);
  checkpoint->Finish();
  return checkpoint;
}

}  // namespace nibble::models
