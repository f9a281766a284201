#include "quantize/quantizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "base/file.h"
#include "base/progress.h"
#include "formats/safetensors_writer.h"
#include "numerics/bf16.h"
#include "numerics/nvfp4.h"
#include "quantize/output_config.h"
#include "quantize/scale_search.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;
using formats::Checkpoint;
using formats::LinearData;
using formats::TensorEntry;
using formats::TensorSpec;

constexpr int64_t kMaxShardBytes = int64_t{5} << 30;

// What becomes of one stored linear or tensor.
struct Plan {
  std::string name;  // module of a linear, else the tensor's name
  enum class Action { kQuantise, kToBf16, kCopy } action = Action::kCopy;
  int64_t n = 0;
  int64_t k = 0;
};

bool IsLinear(const Checkpoint& source, const TensorEntry& entry, std::string* module) {
  if (entry.shape.rank() != 2) return false;
  for (const std::string_view suffix : {".weight", ".weight_packed"}) {
    if (!entry.name.ends_with(suffix)) continue;
    *module = entry.name.substr(0, entry.name.size() - suffix.size());
    return source.LinearFormat(*module).has_value();
  }
  return false;
}

// Every tensor of the source ends up in exactly one plan.
Result<std::vector<Plan>> MakePlans(const Checkpoint& source, const QuantizeOptions& options,
                                    QuantizeReport* report) {
  std::vector<Plan> plans;
  std::set<std::string, std::less<>> consumed;
  for (const TensorEntry& entry : source.tensors()) {
    std::string module;
    if (!IsLinear(source, entry, &module)) continue;
    NIBBLE_ASSIGN(const LinearData data, source.ReadLinear(module, 0, 0, false));
    const WeightFormat stored = data.view.format;
    const bool wide = stored == WeightFormat::kBf16 || stored == WeightFormat::kF16 ||
                      stored == WeightFormat::kF32;
    if (options.format == Format::kNvfp4 && stored == WeightFormat::kNvfp4) {
      return Fail(Code::kInvalidArgument,
                  "{}: {} is NVFP4 already, and quantising it again would only lose precision; "
                  "quantise the original, or use --format bf16 to widen this one",
                  source.path(), module);
    }
    Plan plan{.name = module, .n = data.view.n, .k = data.view.k};
    if (options.format == Format::kBf16) {
      plan.action = Plan::Action::kToBf16;
    } else if (const std::string reason =
                   ReasonToKeep(options.policy, module, {data.view.n, data.view.k});
               !reason.empty()) {
      // Kept in higher precision, which FP8 and MXFP4 are not: their companions would not fit the
      // output's configuration.
      plan.action = wide ? Plan::Action::kCopy : Plan::Action::kToBf16;
      report->kept.push_back({module, reason});
    } else {
      plan.action = Plan::Action::kQuantise;
    }
    if (plan.action == Plan::Action::kCopy) continue;  // the loop below copies its tensors
    for (std::string& name : source.LinearTensors(module)) consumed.insert(std::move(name));
    plans.push_back(std::move(plan));
  }
  for (const TensorEntry& entry : source.tensors()) {
    report->bytes_before += entry.stored_bytes;
    if (!consumed.contains(entry.name)) plans.push_back({.name = entry.name});
  }
  return plans;
}

struct TensorNames {
  std::string codes, scales, tensor_scale;
};

TensorNames NamesFor(Layout layout, const std::string& module) {
  if (layout == Layout::kModelOpt) {
    return {module + ".weight", module + ".weight_scale", module + ".weight_scale_2"};
  }
  return {module + ".weight_packed", module + ".weight_scale", module + ".weight_global_scale"};
}

std::vector<TensorSpec> OutputSpecs(const Checkpoint& source, const std::vector<Plan>& plans,
                                    Layout layout) {
  std::vector<TensorSpec> specs;
  for (const Plan& plan : plans) {
    switch (plan.action) {
      case Plan::Action::kQuantise: {
        const TensorNames names = NamesFor(layout, plan.name);
        specs.push_back({names.codes, DType::kU8, {plan.n, plan.k / 2}});
        specs.push_back({names.scales, DType::kF8E4M3, {plan.n, plan.k / kNvfp4Block}});
        specs.push_back(
            {names.tensor_scale, DType::kF32, layout == Layout::kModelOpt ? Shape{} : Shape{1}});
        break;
      }
      case Plan::Action::kToBf16:
        specs.push_back({plan.name + ".weight", DType::kBF16, {plan.n, plan.k}});
        break;
      case Plan::Action::kCopy: {
        const TensorEntry& entry = *source.Find(plan.name);
        specs.push_back({entry.name, entry.dtype, entry.shape});
        break;
      }
    }
  }
  return specs;
}

// Rows in FP32 as a plain array.
Result<std::vector<float>> Dequantise(const Checkpoint& source, const Plan& plan,
                                      ThreadPool& pool) {
  NIBBLE_ASSIGN(const LinearData data, source.ReadLinear(plan.name, plan.n, plan.k));
  std::vector<float> weight(plan.n * plan.k);
  pool.ParallelFor(plan.n, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      DequantizeRow(data.view, row, weight.data() + row * plan.k);
  });
  return weight;
}

// NaN if there is one: as integers magnitudes compare like the floats, with NaN above infinity.
float LargestMagnitude(const std::vector<float>& weight) {
  int32_t largest = 0;
  for (const float value : weight)
    largest = std::max(largest, std::bit_cast<int32_t>(value) & 0x7FFFFFFF);
  return std::bit_cast<float>(largest);
}

struct Quantised {
  std::vector<uint8_t> codes;   // (N, K/2)
  std::vector<uint8_t> scales;  // (N, K/16)
};

Quantised QuantiseRows(const std::vector<float>& weight, const Plan& plan, float tensor_scale,
                       Method method, ThreadPool& pool) {
  Quantised out{std::vector<uint8_t>(plan.n * plan.k / 2),
                std::vector<uint8_t>(plan.n * plan.k / kNvfp4Block)};
  const int64_t blocks = plan.n * plan.k / kNvfp4Block;
  const ScaleSearch search(tensor_scale);
  pool.ParallelFor(blocks, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      const float* values = weight.data() + block * kNvfp4Block;
      uint8_t* codes = out.codes.data() + block * kNvfp4Block / 2;
      out.scales[block] = method == Method::kMax
                              ? Nvfp4QuantizeBlockMax(values, tensor_scale, codes)
                              : search.Quantize(values, codes);
    }
  });
  return out;
}

TensorReport MeasureError(const std::vector<float>& weight, const Quantised& quantised,
                          const Plan& plan, float tensor_scale) {
  double error = 0, power = 0, largest = 0;
  float amax = 0;
  for (int64_t i = 0; i < plan.n * plan.k; ++i) {
    const float back = Nvfp4Dequantize(UnpackE2M1(quantised.codes.data(), i),
                                       quantised.scales[i / kNvfp4Block], tensor_scale);
    const double difference = static_cast<double>(weight[i]) - back;
    error += difference * difference;
    power += static_cast<double>(weight[i]) * weight[i];
    largest = std::max(largest, std::abs(difference));
    amax = std::max(amax, std::abs(weight[i]));
  }
  return {.module = plan.name,
          .n = plan.n,
          .k = plan.k,
          .relative_error = power > 0 ? std::sqrt(error / power) : 0,
          .largest_error = amax > 0 ? largest / amax : 0};
}

template <typename T>
std::span<const std::byte> BytesOf(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

// The job after planning: reads, converts and writes tensor by tensor into `folder`.
class Job {
 public:
  Job(const Checkpoint& source, const QuantizeOptions& options, const std::vector<Plan>& plans,
      QuantizeReport* report)
      : source_(source), options_(options), plans_(plans), report_(*report) {}

  Status Run(const std::string& folder) {
    Progress progress(options_.format == Format::kNvfp4 ? "quantizing" : "converting",
                      report_.bytes_before, Progress::Unit::kBytes, options_.quiet);
    NIBBLE_TRY(FindGroupScales());
    const std::vector<TensorSpec> specs = OutputSpecs(source_, plans_, options_.layout);
    NIBBLE_ASSIGN(auto writer, formats::ShardedWriter::Create(folder, specs, kMaxShardBytes));
    for (const Plan& plan : plans_) {
      NIBBLE_TRY(CheckCancelled());
      switch (plan.action) {
        case Plan::Action::kQuantise:
          NIBBLE_TRY(Quantise(plan, writer));
          break;
        case Plan::Action::kToBf16:
          NIBBLE_TRY(ToBf16(plan, writer));
          break;
        case Plan::Action::kCopy:
          NIBBLE_TRY(Copy(plan, writer));
          break;
      }
      progress.Advance(StoredBytes(plan));
    }
    NIBBLE_TRY(writer.Finish());
    report_.bytes_after = writer.total_bytes();
    return {};
  }

 private:
  Status CheckCancelled() const {
    if (options_.cancelled && options_.cancelled())
      return Fail(Code::kCancelled, "stopped; nothing was written");
    return {};
  }

  int64_t StoredBytes(const Plan& plan) const {
    if (plan.action == Plan::Action::kCopy) return source_.Find(plan.name)->stored_bytes;
    int64_t bytes = 0;
    for (const std::string& name : source_.LinearTensors(plan.name)) {
      const TensorEntry* entry = source_.Find(name);
      if (entry != nullptr) bytes += entry->stored_bytes;
    }
    return bytes;
  }

  // One tensor scale per group of siblings: their largest magnitude decides.
  Status FindGroupScales() {
    for (const Plan& plan : plans_) {
      if (plan.action != Plan::Action::kQuantise) continue;
      NIBBLE_TRY(CheckCancelled());
      NIBBLE_ASSIGN(const std::vector<float> weight, Dequantise(source_, plan, *options_.pool));
      const float amax = LargestMagnitude(weight);
      if (!std::isfinite(amax)) {
        return Fail(Code::kCorruption, "{}: {} holds a value that is not finite", source_.path(),
                    plan.name);
      }
      float& group = group_amax_[SiblingGroup(plan.name)];
      group = std::max(group, amax);
    }
    return {};
  }

  Status Quantise(const Plan& plan, formats::ShardedWriter& writer) {
    NIBBLE_ASSIGN(const std::vector<float> weight, Dequantise(source_, plan, *options_.pool));
    const float tensor_scale = Nvfp4TensorScale(group_amax_[SiblingGroup(plan.name)]);
    const Quantised quantised =
        QuantiseRows(weight, plan, tensor_scale, options_.method, *options_.pool);
    report_.quantised.push_back(MeasureError(weight, quantised, plan, tensor_scale));
    const TensorNames names = NamesFor(options_.layout, plan.name);
    const float stored = options_.layout == Layout::kModelOpt ? tensor_scale : 1.0f / tensor_scale;
    NIBBLE_TRY(writer.Write(names.codes, BytesOf(quantised.codes)));
    NIBBLE_TRY(writer.Write(names.scales, BytesOf(quantised.scales)));
    return writer.Write(names.tensor_scale, std::as_bytes(std::span(&stored, 1)));
  }

  Status ToBf16(const Plan& plan, formats::ShardedWriter& writer) {
    NIBBLE_ASSIGN(const std::vector<float> weight, Dequantise(source_, plan, *options_.pool));
    std::vector<uint16_t> rounded(weight.size());
    std::ranges::transform(weight, rounded.begin(), Bf16FromFloat);
    return writer.Write(plan.name + ".weight", BytesOf(rounded));
  }

  Status Copy(const Plan& plan, formats::ShardedWriter& writer) {
    NIBBLE_ASSIGN(const formats::TensorData data, source_.Read(plan.name));
    return writer.Write(plan.name, {data.view.data, static_cast<size_t>(data.view.bytes())});
  }

  const Checkpoint& source_;
  const QuantizeOptions& options_;
  const std::vector<Plan>& plans_;
  QuantizeReport& report_;
  std::map<std::string, float> group_amax_;
};

Status PrepareDestination(const std::string& destination, bool replace) {
  std::error_code failed;
  if (fs::exists(destination, failed) && !replace) {
    return Fail(Code::kInvalidArgument, "{}: exists already; --force replaces it", destination);
  }
  return {};
}

}  // namespace

double QuantizeReport::mean_relative_error() const {
  double sum = 0, weight = 0;
  for (const TensorReport& tensor : quantised) {
    const auto elements = static_cast<double>(tensor.n * tensor.k);
    sum += tensor.relative_error * elements;
    weight += elements;
  }
  return weight > 0 ? sum / weight : 0;
}

std::string QuantizeReport::ToString() const {
  std::string out =
      fmt::format("{:<48} {:>14} {:>10} {:>10}\n", "module", "shape", "rms error", "max error");
  for (const TensorReport& tensor : quantised) {
    out += fmt::format("{:<48} {:>14} {:>9.2f}% {:>9.2f}%\n", tensor.module,
                       fmt::format("{}x{}", tensor.n, tensor.k), 100 * tensor.relative_error,
                       100 * tensor.largest_error);
  }
  for (const Kept& tensor : kept)
    out += fmt::format("{:<48} kept: {}\n", tensor.module, tensor.reason);
  out += fmt::format("{} of {} quantised, mean rms error {:.2f} %, {} -> {}\n", quantised.size(),
                     quantised.size() + kept.size(), 100 * mean_relative_error(),
                     FormatBytes(static_cast<double>(bytes_before)),
                     FormatBytes(static_cast<double>(bytes_after)));
  return out;
}

Result<QuantizeReport> QuantizeCheckpoint(const Checkpoint& source, const std::string& destination,
                                          const QuantizeOptions& options) {
  NIBBLE_TRY(PrepareDestination(destination, options.replace));
  QuantizeReport report;
  NIBBLE_ASSIGN(const std::vector<Plan> plans, MakePlans(source, options, &report));
  const bool any = std::ranges::any_of(
      plans, [](const Plan& plan) { return plan.action != Plan::Action::kCopy; });
  if (!any) {
    return Fail(Code::kInvalidArgument,
                "{}: no tensor would change: every matrix is kept in higher precision",
                source.path());
  }
  // Everything goes into a folder beside the destination, which is renamed at the end.
  const std::string folder =
      fmt::format("{}.partial", fs::path(destination).lexically_normal().string());
  std::error_code failed;
  fs::remove_all(folder, failed);
  fs::create_directories(folder, failed);
  if (failed)
    return Fail(Code::kUnavailable, "{}: cannot create the folder: {}", folder, failed.message());

  std::vector<std::string> kept;
  for (const QuantizeReport::Kept& tensor : report.kept) kept.push_back(tensor.module);
  Status done = Job(source, options, plans, &report).Run(folder);
  if (done) done = WriteConfigFiles(source, folder, options, kept);
  if (done) {
    fs::remove_all(destination, failed);
    fs::rename(folder, destination, failed);
    if (failed)
      done = Fail(Code::kUnavailable, "{}: cannot rename to it: {}", destination, failed.message());
  }
  if (!done) {
    fs::remove_all(folder, failed);
    return tl::unexpected(done.error());
  }
  return report;
}

}  // namespace nibble::quantize
