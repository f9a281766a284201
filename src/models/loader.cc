// LoadModel: the walk over a model's weight table that reads, packs and places it.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "base/log.h"
#include "models/load_jobs.h"
#include "models/registry.h"
#include "models/table_walk.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"

namespace nibble::models {
namespace {

using formats::Checkpoint;
using formats::LinearBytes;
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

class Loader : public TableWalk {
 public:
  Loader(const Checkpoint& checkpoint, const kernels::OpTable& ops, const LoadOptions& options)
      : TableWalk(checkpoint), ops_(ops), options_(options), jobs_(*ops.device, *options.pool) {}

  bool takes_fp8() const { return linears_take_fp8_; }

  // Whether some tokens of prompts would meet a weight in W4A4: a dense linear that has an
  // input_scale, or a layer of experts that all have.
  bool takes_w4a4() const {
    return linears_take_w4a4_ ||
           (ops_.moe_w4a4 && std::ranges::any_of(experts_, [](const ExpertsSeen& experts) {
              return experts.have_input_scales.load();
            }));
  }

  // Loads what has been visited and is not there yet.
  void Finish() {
    if (status_) Check(jobs_.Run());
  }

  void VisitLinear(const std::vector<LinearPart>& parts, int64_t k, Bias bias, Linear* out,
                   ColumnRange columns) override {
    for (const LinearPart& part : parts) {
      UseLinear(part.prefix);
      LetHear(part.prefix, out);
    }
    const LinearUse use = {.section = section(), .by_role = RunsByRole(section())};
    AddJob(RowsOf(parts) * k, [=, this](UploadLane* lane) -> Status {
      NIBBLE_TRY(LoadLinear(parts, k, columns, use, lane, out));
      return bias == Bias::kNone ? Status() : LoadBias(parts, bias, use.section, out);
    });
  }

  void VisitRouter(const std::string& prefix, int64_t n, int64_t k, Bias bias,
                   Linear* out) override {
    is_router_ = true;
    TableWalk::VisitRouter(prefix, n, k, bias, out);
    is_router_ = false;
  }

  void VisitHeadLinears(const HeadLinears& heads, std::vector<Linear>* out) override {
    UseLinear(heads.prefix);
    AddJob(heads.n * heads.k, [=, this, section = section()](UploadLane* lane) -> Status {
      return LoadHeadLinears(heads, section, lane, out);
    });
  }

  void VisitExperts(const ExpertsSpec& spec, std::vector<Expert>* out) override {
    out->resize(static_cast<size_t>(spec.count));
    ExpertsSeen* const seen = &experts_.emplace_back();
    seen->have_input_scales = spec.count == spec.experts && section() != Section::kDraft;
    for (int64_t e = 0; e < spec.experts; ++e) {
      const int64_t i = e - spec.first;
      if (i < 0 || i >= spec.count) {  // another rank uses it
        UseExpertOf(spec, e);
        continue;
      }
      const LinearUse use = {.section = section(), .share = ExpertShare(spec)};
      Expert* const expert = &(*out)[static_cast<size_t>(i)];
      AddJob(3 * spec.d * spec.f, [=, this](UploadLane* lane) -> Status {
        UseExpertOf(spec, e);
        NIBBLE_TRY(LoadExpert(spec, e, InputProjections(spec), use, lane, &expert->gate_up));
        NIBBLE_TRY(LoadExpert(spec, e, {OutputProjection(spec)}, use, lane, &expert->down));
        if (!HasInputScales(expert->gate_up) || !HasInputScales(expert->down))
          seen->have_input_scales = false;
        return {};
      });
    }
  }

  void VisitEmbedding(const std::string& name, int64_t v, int64_t d, bool tied_head,
                      Linear* out) override {
    const std::vector<LinearPart> parts = {{WithoutWeightSuffix(name), v, {}}};
    UseLinear(parts[0].prefix);
    const LinearUse use = {.section = section(),
                           .share = tied_head ? 1.0 : 1.0 / static_cast<double>(v),
                           .gather_rows = true};
    AddJob(v * d, [=, this](UploadLane* lane) -> Status {
      return LoadLinear(parts, d, {}, use, lane, out);
    });
  }

  void VisitVector(const std::string& name, int64_t n, Resident<float>* out, int64_t width,
                   const std::vector<RowRange>& rows) override {
    if (!status_) return;
    Use(name);
    auto values = ReadFloats(checkpoint_, name, n);
    if (!values) return Fail(values.error());
    Check(out->Assign(TakeRows(std::move(*values), width, rows), *ops_.device));
    CountVector(section(), static_cast<int64_t>(out->size()));
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
  static constexpr LinearBytes kChecked = LinearBytes::kChecked;

  struct LinearUse {
    Section section = Section::kOther;
    double share = 1.0;        // the part of it that one token uses
    bool gather_rows = false;  // an embedding
    bool gate_up = false;      // for an activation
    bool by_role = false;      // Linear::Run of a step decides by tokens' roles how it runs
    int64_t tensors = 1;       // what it adds to the summary
  };

  // A layer's; set to false by jobs.
  struct ExpertsSeen {
    std::atomic<bool> have_input_scales = true;
  };

  // Routers and shared experts run inside the op of experts, heads and drafts on generated tokens.
  bool RunsByRole(Section section) const {
    return !is_router_ && section != Section::kSharedExpert && section != Section::kHead &&
           section != Section::kDraft;
  }

  static bool HasInputScales(const Linear& linear) {
    return linear.segments.size() == 1 && linear.segments[0].weight->input_scale() > 0.0f;
  }

  // After the walk, jobs write what they were given and, under the mutex, what this class and the
  // walk hold.
  void AddJob(int64_t elements, LoadJobs::Job job) {
    if (status_) Check(jobs_.Add(elements, std::move(job)));
  }

  static int64_t RowsOf(const std::vector<LinearPart>& parts) {
    int64_t rows = 0;
    for (const LinearPart& part : parts) rows += part.n;
    return rows;
  }

  // All its projections. Finding their names takes long.
  void UseExpertOf(const ExpertsSpec& spec, int64_t expert) {
    std::vector<std::string> names;
    std::vector<Projection> projections = InputProjections(spec);
    projections.push_back(OutputProjection(spec));
    for (const Projection& projection : projections) {
      for (std::string& name : checkpoint_.ExpertTensors(spec.prefix, expert, projection.name))
        names.push_back(std::move(name));
    }
    const std::lock_guard lock(mutex_);
    UseStored(std::move(names));
  }

  // Of a calibration, as one of the modules stacked in `out`.
  void LetHear(std::string module, Linear* out) const {
    if (options_.observer == nullptr) return;
    out->observer = options_.observer;
    out->modules.push_back(std::move(module));
  }

  void Check(const Status& status) {
    if (!status) Fail(status.error());
  }

  void Advance(const std::string& name) {
    const TensorEntry* entry = checkpoint_.Find(name);
    if (entry != nullptr) Advance(entry->stored_bytes);
  }
  void Advance(int64_t bytes) {
    if (options_.progress != nullptr) options_.progress->Advance(bytes);
    if (ops_.device->host_memory()) return;
    const int64_t before = read_.fetch_add(bytes);
    const int64_t step = options_.drop_behind_bytes;
    if (before / step != (before + bytes) / step) {
      // Also where memory abounds: to unmap all of a large file at the end takes a second.
      checkpoint_.DropBehind(ops_.device->shares_host_memory());
    }
  }
  static int64_t StoredBytes(std::span<const LinearData> stack) {
    int64_t bytes = 0;
    for (const LinearData& data : stack)
      bytes += data.view.data_bytes() + data.view.scale_bytes() + data.view.zero_bytes();
    return bytes;
  }

  static std::vector<float> TakeRows(std::vector<float> values, int64_t width,
                                     const std::vector<RowRange>& rows) {
    if (rows.empty()) return values;
    std::vector<float> taken;
    for (const RowRange& range : rows) {
      for (int64_t i = 0; i < range.count; ++i) {
        const auto from = values.begin() + (range.begin + i * range.step) * width;
        taken.insert(taken.end(), from, from + width);
      }
    }
    return taken;
  }

  // Of weights that are packed as they are.
  LinearBytes Wanted() const { return ops_.packs_made_up ? LinearBytes::kMadeUp : kChecked; }

  Result<LinearData> ReadPart(const LinearPart& part, int64_t k, ColumnRange columns) {
    const bool whole = part.rows.empty() && columns.count == 0;
    NIBBLE_ASSIGN(LinearData data,
                  checkpoint_.ReadLinear(part.prefix, part.n, k, whole ? Wanted() : kChecked));
    if (whole) return data;
    auto slice = SliceWeight(data.view, part.rows, columns);
    if (!slice) {
      return tl::unexpected(
          slice.error().Context(fmt::format("{}: {}", checkpoint_.path(), part.prefix)));
    }
    return LinearData{slice->view, slice->owner != nullptr ? slice->owner : data.owner};
  }

  Status LoadLinear(const std::vector<LinearPart>& parts, int64_t k, ColumnRange columns,
                    LinearUse use, UploadLane* lane, Linear* out) {
    std::vector<LinearData> stack;
    for (const LinearPart& part : parts) {
      NIBBLE_ASSIGN(LinearData data, ReadPart(part, k, columns));
      stack.push_back(std::move(data));
    }
    return PackStack(stack, use, lane, out);
  }

  Status LoadExpert(const ExpertsSpec& spec, int64_t expert,
                    const std::vector<Projection>& projections, LinearUse use, UploadLane* lane,
                    Linear* out) {
    std::vector<LinearData> stack;
    std::vector<float> bias;
    for (const Projection& p : projections) {
      LetHear(checkpoint_.ExpertModule(spec.prefix, expert, p.name), out);
      NIBBLE_ASSIGN(LinearData data, checkpoint_.ReadExpert(spec.prefix, expert, p.name, p.n, p.k,
                                                            spec.layout, Wanted()));
      stack.push_back(std::move(data));
      if (spec.bias) NIBBLE_TRY(AppendExpertBias(spec, expert, p, use, &bias));
    }
    if (spec.bias) NIBBLE_TRY(out->bias.Assign(std::move(bias), *ops_.device));
    return PackStack(stack, use, lane, out);
  }

  Status AppendExpertBias(const ExpertsSpec& spec, int64_t expert, const Projection& p,
                          LinearUse use, std::vector<float>* out) {
    NIBBLE_ASSIGN(const std::vector<float> bias,
                  checkpoint_.ReadExpertBias(spec.prefix, expert, p.name, p.n, spec.layout));
    if (bias.empty()) {
      return nibble::Fail(Code::kNotFound, "{}: tensor {}.{}.{}.bias is missing, stacked or alone",
                          checkpoint_.path(), spec.prefix, expert, p.name);
    }
    out->insert(out->end(), bias.begin(), bias.end());
    const std::lock_guard lock(mutex_);
    CountVector(use.section, p.n, use.share);
    return {};
  }

  // Neighbours that one packed weight can hold.
  static bool CanStack(const QuantView& a, const QuantView& b) {
    return a.format == b.format && SameActivations(a, b);
  }

  // Packs runs of neighbours that can be stacked into one segment each.
  Status PackStack(std::span<const LinearData> stack, LinearUse use, UploadLane* lane,
                   Linear* out) {
    out->k = stack[0].view.k;
    out->n = 0;
    std::vector<QuantView> run;
    for (const LinearData& data : stack) {
      if (!run.empty() && !CanStack(run.back(), data.view)) {
        NIBBLE_TRY(PackSegment(run, use, lane, out));
        run.clear();
      }
      run.push_back(data.view);
    }
    use.gate_up = out->is_gate_up && run.size() == stack.size();
    NIBBLE_TRY(PackSegment(run, use, lane, out));
    Advance(StoredBytes(stack));
    return {};
  }

  Status PackSegment(std::span<const QuantView> views, LinearUse use, UploadLane* lane,
                     Linear* out) {
    int64_t rows = 0;
    for (const QuantView& view : views) rows += view.n;
    NIBBLE_ASSIGN(auto packed, ops_.pack_weight({.parts = views,
                                                 .activations = options_.activations,
                                                 .gather_rows = use.gather_rows,
                                                 .gate_up = use.gate_up,
                                                 .pool = jobs_.parallel() ? nullptr : options_.pool,
                                                 .lane = lane}));
    {
      const std::lock_guard lock(mutex_);
      for (const QuantView& view : views)
        Count(use.section, view.format, view.n * view.k, packed->bytes() * view.n / rows, use.share,
              use.tensors);
      linears_take_w4a4_ = linears_take_w4a4_ || (use.by_role && packed->input_scale() > 0.0f);
      linears_take_fp8_ = linears_take_fp8_ || (use.by_role && packed->fp8().group > 0);
    }
    out->segments.push_back({std::move(packed), out->n});
    out->n += rows;
    return {};
  }

  Status LoadHeadLinears(const HeadLinears& heads, Section section, UploadLane* lane,
                         std::vector<Linear>* out) {
    NIBBLE_ASSIGN(const LinearData data,
                  checkpoint_.ReadLinear(heads.prefix, heads.n, heads.k, kChecked));
    if (heads.transposed) {
      const std::lock_guard lock(mutex_);
      CountDequantised(data.view.format);
    }
    for (const RowRange& rows : heads.heads) {
      Linear& linear = out->emplace_back();
      const LinearUse use = {.section = section, .tensors = out->size() == 1 ? 1 : 0};
      if (heads.transposed) {
        const std::vector<uint16_t> values = Transposed(data.view, rows);
        linear.k = rows.count;
        const QuantView view = {.format = WeightFormat::kBf16,
                                .n = heads.k,
                                .k = rows.count,
                                .data = reinterpret_cast<const std::byte*>(values.data())};
        NIBBLE_TRY(PackSegment({&view, 1}, use, lane, &linear));
        continue;
      }
      linear.k = heads.k;
      if (out->size() == 1) LetHear(heads.prefix, &linear);  // for the stored weight as a whole
      NIBBLE_ASSIGN(const QuantSlice slice, SliceWeight(data.view, {&rows, 1}, {}));
      NIBBLE_TRY(PackSegment({&slice.view, 1}, use, lane, &linear));
    }
    Advance(StoredBytes({&data, 1}));
    return {};
  }

  // (K, rows) BF16: of x itself, so what the weight does to x beforehand is part of it.
  static std::vector<uint16_t> Transposed(const QuantView& view, const RowRange& rows) {
    std::vector<uint16_t> out(view.k * rows.count);
    std::vector<float> row(view.k);
    for (int64_t i = 0; i < rows.count; ++i) {
      DequantizeRow(view, rows.begin + i * rows.step, row.data());
      for (int64_t j = 0; j < view.k; ++j) {
        const int64_t from = view.column_order == nullptr ? j : view.column_order[j];
        const float factor = view.input_multiplier == nullptr ? 1.0f : view.input_multiplier[j];
        out[from * rows.count + i] = Bf16FromFloat(row[j] * factor);
      }
    }
    return out;
  }

  Status LoadBias(const std::vector<LinearPart>& parts, Bias bias, Section section, Linear* out) {
    std::vector<float> values;
    bool any = false;
    for (const LinearPart& part : parts) {
      const std::string name = part.prefix + ".bias";
      if (bias == Bias::kIfStored && checkpoint_.Find(name) == nullptr) {
        values.resize(values.size() + part.rows_taken(), 0.0f);
        continue;
      }
      NIBBLE_ASSIGN(std::vector<float> piece, ReadFloats(checkpoint_, name, part.n));
      piece = TakeRows(std::move(piece), 1, part.rows);
      values.insert(values.end(), piece.begin(), piece.end());
      Advance(name);
      any = true;
      const std::lock_guard lock(mutex_);
      Use(name);
      CountVector(section, part.rows_taken());
    }
    if (any) NIBBLE_TRY(out->bias.Assign(std::move(values), *ops_.device));
    return {};
  }

  const kernels::OpTable& ops_;
  const LoadOptions& options_;
  LoadJobs jobs_;
  std::mutex mutex_;  // of what jobs count and use
  bool linears_take_w4a4_ = false;
  bool linears_take_fp8_ = false;
  std::deque<ExpertsSeen> experts_;
  bool is_router_ = false;  // while one is visited
  std::atomic<int64_t> read_ = 0;
};

// Positions of a model that has more, unless the caller asks for them.
constexpr int64_t kDefaultPositions = int64_t{1} << 20;

Status CheckOps(const LoadableModel& model, const kernels::OpTable& ops) {
  const std::vector<std::string_view> missing = kernels::MissingOps(ops);
  for (const std::string_view op : model.RequiredOps()) {
    if (std::ranges::find(missing, op) == missing.end()) continue;
    return nibble::Fail(Code::kUnsupported,
                        "{} needs the op {}, which the {} {} backend does not have",
                        model.info().architecture, op, ops.backend, ops.variant);
  }
  for (const KvSpec& kv : model.info().kv) {
    if (kv.head_dim <= ops.max_head_dim) continue;
    return nibble::Fail(
        Code::kUnsupported,
        "{} has attention heads of {} dimensions: on {} the {} backend takes at most {}",
        model.info().architecture, kv.head_dim, ops.device->name(), ops.backend, ops.max_head_dim);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Model>> LoadModel(const Checkpoint& checkpoint, const LoadOptions& options) {
  NIBBLE_CHECK(options.pool != nullptr, "LoadOptions.pool");
  const kernels::OpTable& ops = options.ops != nullptr ? *options.ops : kernels::CpuOps();
  NIBBLE_ASSIGN(std::unique_ptr<LoadableModel> model,
                BuildModel(checkpoint.config(), {.tp = options.tp, .draft = options.draft}));
  // Configs do not always say whether the module is there.
  if (model->has_draft() && checkpoint.Find(model->draft_tensor()) == nullptr) {
    NIBBLE_ASSIGN(model, BuildModel(checkpoint.config(), {.tp = options.tp}));
  }
  NIBBLE_TRY(CheckOps(*model, ops));
  if (options.tp.active() && !ops.device->host_memory()) {
    return nibble::Fail(Code::kUnsupported, "tensor parallelism over {} is not there yet",
                        ops.device->name());
  }
  Loader loader(checkpoint, ops, options);
  model->VisitWeights(loader);
  loader.Finish();
  NIBBLE_TRY(loader.status());
  loader.ReportLeftOver();
  loader.TakeCounts(&model->mutable_info());
  const PromptForms& wanted = options.prompt_forms;
  model->mutable_info().prompt_forms = {
      .w4a4 = wanted.w4a4 && ops.linear_w4a4 != nullptr && loader.takes_w4a4(),
      .fp8 = wanted.fp8 && ops.linear_fp8 != nullptr && loader.takes_fp8()};
  int64_t& limit = model->mutable_info().max_positions;
  if (options.max_positions == 0 && limit > kDefaultPositions) {
    LogInfo(
        "{}: a context of {} positions instead of {}, whose RoPE tables would take gigabytes; "
        "--max-model-len asks for more",
        checkpoint.path(), kDefaultPositions, limit);
    limit = kDefaultPositions;
  }
  const int64_t positions =
      options.max_positions > 0 ? std::min(options.max_positions, limit) : limit;
  NIBBLE_TRY(model->FinishLoad(ops, options.pool, positions));
  return model;
}

}  // namespace nibble::models
