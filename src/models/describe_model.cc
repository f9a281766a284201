// DescribeModel: the walk over a model's weight table that reads no tensor data.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "models/registry.h"
#include "models/table_walk.h"

namespace nibble::models {
namespace {

using formats::Checkpoint;
using formats::TensorEntry;

class Describer : public TableWalk {
 public:
  using TableWalk::TableWalk;

  void VisitLinear(const std::vector<LinearPart>& parts, int64_t k, Bias bias, Linear*,
                   ColumnRange columns) override {
    for (const LinearPart& part : parts) {
      CountLinear(part.prefix, part.rows_taken(), columns.count > 0 ? columns.count : k, 1.0);
      CountBias(part, bias);
    }
  }

  void VisitHeadLinears(const HeadLinears& heads, std::vector<Linear>*) override {
    const int64_t rows = RowCount(heads.heads);
    if (!heads.transposed) return CountLinear(heads.prefix, rows, heads.k, 1.0);
    UseLinear(heads.prefix);
    auto stored = checkpoint_.LinearFormat(heads.prefix);
    if (!stored) return Fail(stored.error());
    CountDequantised(*stored);
    Count(section(), WeightFormat::kBf16, rows * heads.k, rows * heads.k * 2, 1.0);
  }

  void VisitExperts(const ExpertsSpec& spec, std::vector<Expert>*) override {
    for (int64_t e = spec.first; e < spec.first + spec.count; ++e) {
      for (const Projection& projection : InputProjections(spec)) CountExpert(spec, e, projection);
      CountExpert(spec, e, OutputProjection(spec));
    }
  }

  void VisitEmbedding(const std::string& name, int64_t v, int64_t d, bool tied_head,
                      Linear*) override {
    CountLinear(WithoutWeightSuffix(name), v, d, tied_head ? 1.0 : 1.0 / static_cast<double>(v));
  }

  void VisitVector(const std::string& name, int64_t n, Resident<float>*, int64_t width,
                   const std::vector<RowRange>& rows) override {
    Use(name);
    const TensorEntry* entry = checkpoint_.Find(name);
    if (entry == nullptr) {
      return Fail(Error(Code::kNotFound,
                        fmt::format("{}: tensor {} is missing", checkpoint_.path(), name)));
    }
    CountVector(section(), rows.empty() ? n : RowCount(rows) * width);
  }

  void VisitScalar(const std::vector<std::string>& names, float*) override {
    for (const std::string& name : names) Use(name);
  }

 private:
  // (n, k): the part of it that is taken.
  void CountLinear(const std::string& prefix, int64_t n, int64_t k, double share) {
    UseLinear(prefix);
    const auto shape = checkpoint_.DescribeLinear(prefix);
    if (!shape) return Fail(shape.error());
    CountMatrix(*shape, n, k, share);
  }

  void CountExpert(const ExpertsSpec& spec, int64_t expert, const Projection& p) {
    const double share = ExpertShare(spec);
    UseExpert(spec, expert, p.name);
    const auto shape =
        checkpoint_.DescribeExpert(spec.prefix, expert, p.name, p.n, p.k, spec.layout);
    if (!shape) return Fail(shape.error());
    CountMatrix(*shape, p.n, p.k, share);
    if (spec.bias) CountVector(section(), p.n, share);
  }

  void CountMatrix(const formats::LinearShape& shape, int64_t n, int64_t k, double share) {
    const double part =
        static_cast<double>(n * k) / static_cast<double>(std::max<int64_t>(shape.n * shape.k, 1));
    Count(section(), shape.format, n * k, std::llround(static_cast<double>(shape.bytes) * part),
          share);
  }

  void CountBias(const LinearPart& part, Bias bias) {
    const std::string name = part.prefix + ".bias";
    const bool stored = checkpoint_.Find(name) != nullptr;
    if (bias == Bias::kNone || (bias == Bias::kIfStored && !stored)) return;
    Use(name);
    if (!stored)
      return Fail(Error(Code::kNotFound,
                        fmt::format("{}: tensor {} is missing", checkpoint_.path(), name)));
    CountVector(section(), part.rows_taken());
  }
};

}  // namespace

Result<ModelInfo> DescribeModel(const Checkpoint& checkpoint) {
  NIBBLE_ASSIGN(std::unique_ptr<LoadableModel> model, BuildModel(checkpoint.config()));
  Describer describer(checkpoint);
  model->VisitWeights(describer);
  NIBBLE_TRY(describer.status());
  ModelInfo info = model->info();
  describer.TakeCounts(&info);
  info.left_over = describer.LeftOver();
  return info;
}

}  // namespace nibble::models
