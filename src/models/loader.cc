// LoadModel and DescribeModel: the two walks over a model's weight table.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "base/log.h"
#include "models/registry.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"

namespace nibble::models {
namespace {

using formats::Checkpoint;
using formats::LinearData;
using formats::TensorData;
using formats::TensorEntry;

Result<std::vector<float>> ReadFloats(const Checkpoint& checkpoint, const std::string& name,
                                      int64_t n) {
  const TensorEntry* entry = checkpoint.Find(name);
  if (entry == nullptr)
    return Fail(Code::kNotFound, "{}: tensor {} is missing", checkpoint.path(), name);
  if (entry->shape.elements() != n) {
    return Fail(Code::kCorruption, "{}: tensor {} has shape {}, expected {} elements",
                checkpoint.path(), name, entry->shape.ToString(), n);
  }
  NIBBLE_ASSIGN(const TensorData data, checkpoint.Read(*entry));
  std::vector<float> values(n);
  const std::byte* bytes = data.view.data;
  switch (data.view.dtype) {
    case DType::kF32:
      std::memcpy(values.data(), bytes, n * sizeof(float));
      return values;
    case DType::kBF16:
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) {
        uint16_t bits;
        std::memcpy(&bits, bytes + 2 * i, 2);
        values[i] = data.view.dtype == DType::kBF16 ? Bf16ToFloat(bits) : F16ToFloat(bits);
      }
      return values;
    default:
      return Fail(Code::kCorruption, "{}: tensor {} is {}, expected BF16, F16 or F32",
                  checkpoint.path(), name, DTypeName(data.view.dtype));
  }
}

// Shared by both walks: which tensors were used, what is left over, how many bytes and formats
// there are.
class TableWalk : public WeightVisitor {
 public:
  explicit TableWalk(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  void Ignore(std::string_view suffix) override { ignored_.emplace_back(suffix); }

  const Status& status() const { return status_; }
  int64_t weight_bytes() const { return weight_bytes_; }
  int64_t bytes_per_token() const { return bytes_per_token_; }

  // "210 nvfp4, 61 bf16"
  std::string Summary() const {
    std::vector<std::string> parts;
    for (const auto& [format, count] : formats_)
      parts.push_back(fmt::format("{} {}", count, format));
    return fmt::format("{}", fmt::join(parts, ", "));
  }

  // One line about tensors that nobody asked for; they do no harm.
  void ReportLeftOver() const {
    std::vector<std::string> names;
    for (const TensorEntry& entry : checkpoint_.tensors()) {
      if (used_.contains(entry.name)) continue;
      const bool ignored = std::ranges::any_of(
          ignored_, [&](const std::string& suffix) { return entry.name.ends_with(suffix); });
      if (!ignored) names.push_back(entry.name);
    }
    if (names.empty()) return;
    LogWarning("{}: {} tensors are not used by this model, the first is {}", checkpoint_.path(),
               names.size(), names.front());
  }

 protected:
  void Fail(Error error) {
    if (status_) status_ = tl::unexpected(std::move(error));
  }
  void Use(const std::string& name) { used_.insert(name); }
  void UseLinear(const std::string& prefix) {
    for (std::string& name : checkpoint_.LinearTensors(prefix)) used_.insert(std::move(name));
  }
  void Count(WeightFormat format, int64_t resident, int64_t per_token) {
    ++formats_[std::string(WeightFormatName(format))];
    weight_bytes_ += resident;
    bytes_per_token_ += per_token;
  }
  void CountVector(int64_t n) {
    weight_bytes_ += n * 4;
    bytes_per_token_ += n * 4;
  }

  const Checkpoint& checkpoint_;
  Status status_;

 private:
  std::set<std::string, std::less<>> used_;
  std::vector<std::string> ignored_;
  std::map<std::string, int> formats_;
  int64_t weight_bytes_ = 0;
  int64_t bytes_per_token_ = 0;
};

std::string WithoutWeightSuffix(std::string name) {
  if (name.ends_with(".weight")) name.resize(name.size() - 7);
  return name;
}

class Describer : public TableWalk {
 public:
  using TableWalk::TableWalk;

  void VisitLinear(const std::vector<LinearPart>& parts, int64_t k, Bias bias, Linear*) override {
    for (const LinearPart& part : parts) {
      CountLinear(part.prefix, part.n, k, true);
      const std::string bias_name = part.prefix + ".bias";
      const bool stored = checkpoint_.Find(bias_name) != nullptr;
      if (bias == Bias::kNone || (bias == Bias::kIfStored && !stored)) continue;
      Use(bias_name);
      if (!stored)
        Fail(Error(Code::kNotFound,
                   fmt::format("{}: tensor {} is missing", checkpoint_.path(), bias_name)));
      CountVector(part.n);
    }
  }

  void VisitEmbedding(const std::string& name, int64_t v, int64_t d, bool tied_head,
                      Linear*) override {
    CountLinear(WithoutWeightSuffix(name), v, d, tied_head);
  }

  void VisitVector(const std::string& name, int64_t n, std::vector<float>*) override {
    Use(name);
    const TensorEntry* entry = checkpoint_.Find(name);
    if (entry == nullptr) {
      return Fail(Error(Code::kNotFound,
                        fmt::format("{}: tensor {} is missing", checkpoint_.path(), name)));
    }
    CountVector(n);
  }

  void VisitScalar(const std::vector<std::string>& names, float*) override {
    for (const std::string& name : names) Use(name);
  }

 private:
  void CountLinear(const std::string& prefix, int64_t n, int64_t k, bool read_per_token) {
    UseLinear(prefix);
    auto format = checkpoint_.LinearFormat(prefix);
    if (!format) return Fail(format.error());
    QuantView view{.format = *format,
                   .n = n,
                   .k = k,
                   .scale_dtype = DType::kF32,
                   .scale_block_n = n,
                   .scale_block_k = k};
    const int64_t bytes = view.data_bytes() + view.scale_bytes();
    Count(*format, bytes, read_per_token ? bytes : bytes / n);
  }
};

class Loader : public TableWalk {
 public:
  Loader(const Checkpoint& checkpoint, const kernels::OpTable& ops, const LoadOptions& options)
      : TableWalk(checkpoint), ops_(ops), options_(options) {}

  void VisitLinear(const std::vector<LinearPart>& parts, int64_t k, Bias bias,
                   Linear* out) override {
    if (!status_) return;
    if (options_.observer != nullptr) {
      out->observer = options_.observer;
      for (const LinearPart& part : parts) out->modules.push_back(part.prefix);
    }
    Check(LoadLinear(parts, k, out, {.read_per_token = true}));
    if (status_ && bias != Bias::kNone) Check(LoadBias(parts, bias, out));
  }

  void VisitEmbedding(const std::string& name, int64_t v, int64_t d, bool tied_head,
                      Linear* out) override {
    if (!status_) return;
    Check(LoadLinear({{WithoutWeightSuffix(name), v}}, d, out,
                     {.read_per_token = tied_head, .gather_rows = true}));
  }

  void VisitVector(const std::string& name, int64_t n, std::vector<float>* out) override {
    if (!status_) return;
    Use(name);
    auto values = ReadFloats(checkpoint_, name, n);
    if (!values) return Fail(values.error());
    *out = std::move(*values);
    CountVector(n);
    Advance(name);
  }

  void VisitScalar(const std::vector<std::string>& names, float* out) override {
    if (!status_) return;
    bool found = false;
    for (const std::string& name : names) {
      Use(name);
      if (found || checkpoint_.Find(name) == nullptr) continue;
      auto values = ReadFloats(checkpoint_, name, 1);
      if (!values) return Fail(values.error());
      if (!((*values)[0] > 0.0f) || !((*values)[0] < 1e30f)) {
        return Fail(Error(Code::kCorruption,
                          fmt::format("{}: tensor {} is {}, expected a positive finite scale",
                                      checkpoint_.path(), name, (*values)[0])));
      }
      *out = (*values)[0];
      found = true;
    }
  }

 private:
  void Check(const Status& status) {
    if (!status) Fail(status.error());
  }

  void Advance(const std::string& name) {
    const TensorEntry* entry = checkpoint_.Find(name);
    if (options_.progress != nullptr && entry != nullptr)
      options_.progress->Advance(entry->stored_bytes);
  }

  struct LinearUse {
    bool read_per_token = false;  // whole, for every token
    bool gather_rows = false;     // an embedding
  };

  // Neighbours that one packed weight can hold.
  static bool CanStack(const QuantView& a, const QuantView& b) {
    return a.format == b.format && SameActivations(a, b);
  }

  // Packs runs of neighbours that can be stacked into one segment each.
  Status LoadLinear(const std::vector<LinearPart>& parts, int64_t k, Linear* out, LinearUse use) {
    out->k = k;
    out->n = 0;
    std::vector<LinearData> run;
    const auto pack_run = [&]() -> Status {
      if (run.empty()) return {};
      std::vector<QuantView> views;
      int64_t rows = 0;
      for (const LinearData& data : run) {
        views.push_back(data.view);
        rows += data.view.n;
      }
      NIBBLE_ASSIGN(auto packed, ops_.pack_weight({.parts = views,
                                                   .activations = options_.activations,
                                                   .gather_rows = use.gather_rows,
                                                   .pool = options_.pool}));
      for (const QuantView& view : views) {
        const int64_t bytes = packed->bytes() * view.n / rows;
        Count(view.format, bytes, use.read_per_token ? bytes : bytes / view.n);
      }
      out->segments.push_back({std::move(packed), out->n});
      out->n += rows;
      run.clear();
      return {};
    };
    for (const LinearPart& part : parts) {
      UseLinear(part.prefix);
      NIBBLE_ASSIGN(LinearData data, checkpoint_.ReadLinear(part.prefix, part.n, k));
      if (!run.empty() && !CanStack(run.back().view, data.view)) NIBBLE_TRY(pack_run());
      run.push_back(std::move(data));
      for (const std::string& name : checkpoint_.LinearTensors(part.prefix)) Advance(name);
    }
    return pack_run();
  }

  Status LoadBias(const std::vector<LinearPart>& parts, Bias bias, Linear* out) {
    std::vector<float> values;
    bool any = false;
    for (const LinearPart& part : parts) {
      const std::string name = part.prefix + ".bias";
      if (bias == Bias::kIfStored && checkpoint_.Find(name) == nullptr) {
        values.resize(values.size() + part.n, 0.0f);
        continue;
      }
      Use(name);
      NIBBLE_ASSIGN(const std::vector<float> piece, ReadFloats(checkpoint_, name, part.n));
      values.insert(values.end(), piece.begin(), piece.end());
      CountVector(part.n);
      Advance(name);
      any = true;
    }
    if (any) out->bias = std::move(values);
    return {};
  }

  const kernels::OpTable& ops_;
  const LoadOptions& options_;
};

Status CheckOps(const LoadableModel& model, const kernels::OpTable& ops) {
  const std::vector<std::string_view> missing = kernels::MissingOps(ops);
  for (const std::string_view op : model.RequiredOps()) {
    if (std::ranges::find(missing, op) == missing.end()) continue;
    return nibble::Fail(Code::kUnsupported,
                        "{} needs the op {}, which the {} {} backend does not have",
                        model.info().architecture, op, ops.backend, ops.variant);
  }
  return {};
}

void TakeCounts(const TableWalk& walk, ModelInfo* info) {
  info->weight_bytes = walk.weight_bytes();
  info->bytes_per_token = walk.bytes_per_token();
  info->weight_summary = walk.Summary();
}

}  // namespace

Result<std::unique_ptr<Model>> LoadModel(const Checkpoint& checkpoint, const LoadOptions& options) {
  NIBBLE_CHECK(options.pool != nullptr, "LoadOptions.pool");
  const kernels::OpTable& ops = options.ops != nullptr ? *options.ops : kernels::CpuOps();
  NIBBLE_ASSIGN(const Architecture* architecture, FindArchitecture(checkpoint.config()));
  NIBBLE_ASSIGN(std::unique_ptr<LoadableModel> model, architecture->make(checkpoint.config()));
  NIBBLE_TRY(CheckOps(*model, ops));
  Loader loader(checkpoint, ops, options);
  model->VisitWeights(loader);
  NIBBLE_TRY(loader.status());
  loader.ReportLeftOver();
  TakeCounts(loader, &model->mutable_info());
  const int64_t positions = options.max_positions > 0
                                ? std::min(options.max_positions, model->info().max_positions)
                                : model->info().max_positions;
  NIBBLE_TRY(model->FinishLoad(ops, options.pool, positions));
  return model;
}

Result<ModelInfo> DescribeModel(const Checkpoint& checkpoint) {
  NIBBLE_ASSIGN(const Architecture* architecture, FindArchitecture(checkpoint.config()));
  NIBBLE_ASSIGN(std::unique_ptr<LoadableModel> model, architecture->make(checkpoint.config()));
  Describer describer(checkpoint);
  model->VisitWeights(describer);
  NIBBLE_TRY(describer.status());
  ModelInfo info = model->info();
  TakeCounts(describer, &info);
  return info;
}

}  // namespace nibble::models
