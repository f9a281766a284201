#include "quantize/quantizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/progress.h"
#include "formats/safetensors_writer.h"
#include "numerics/bf16.h"
#include "numerics/nvfp4.h"
#include "quantize/encode.h"
#include "quantize/linear_output.h"
#include "quantize/output_config.h"
#include "quantize/output_folder.h"
#include "quantize/plan.h"
#include "quantize/smoothing.h"
#include "quantize/weight_rows.h"

namespace nibble::quantize {
namespace {

using formats::Checkpoint;
using formats::LinearData;
using formats::TensorEntry;
using formats::TensorSpec;

constexpr int64_t kMaxShardBytes = int64_t{5} << 30;

// The widest group of columns with a scale that divides K.
int64_t Int4Group(int64_t k) {
  for (const int64_t group : {128, 64}) {
    if (k % group == 0) return group;
  }
  return 32;
}

template <typename T>
std::span<const std::byte> BytesOf(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

bool AnyErrsMore(const std::vector<Encoded>& encoded, const std::vector<Encoded>& than) {
  for (size_t i = 0; i < encoded.size(); ++i) {
    if (encoded[i].error.squared > than[i].error.squared) return true;
  }
  return false;
}

// The job after planning: reads, converts and writes group by group into `folder`.
class Job {
 public:
  Job(const Checkpoint& source, const QuantizeOptions& options, const Plan& plan,
      QuantizeReport* report)
      : source_(source), options_(options), plan_(plan), report_(*report) {}

  Status Run(const std::string& folder) {
    Progress progress(options_.format == Format::kBf16 ? "converting" : "quantizing",
                      plan_.bytes_before, Progress::Unit::kBytes, options_.quiet);
    progress_ = &progress;
    MakeGroups();
    FindInputRanges();
    NIBBLE_TRY(FindSmoothings());
    NIBBLE_TRY(FindSchemes());
    const std::vector<TensorSpec> specs = OutputSpecs();
    NIBBLE_ASSIGN(auto writer, formats::ShardedWriter::Create(folder, specs, kMaxShardBytes));
    for (const Group& group : groups_) {
      NIBBLE_TRY(CheckCancelled());
      NIBBLE_TRY(WriteGroup(group, writer));
      for (const size_t unit : group.units) Release(plan_.units[unit]);
    }
    NIBBLE_TRY(writer.Finish());
    report_.bytes_after = writer.total_bytes();
    return WriteConfig(folder);
  }

 private:
  // Linears that share a tensor scale; else one unit.
  struct Group {
    std::vector<size_t> units;
    std::vector<float> pre_quant_scale;  // (K), or empty
  };

  // Of what goes into a linear.
  struct InputRange {
    float amax = 0;  // 0: unknown
    bool borrowed = false;
  };

  Status CheckCancelled() const {
    if (options_.cancelled && options_.cancelled())
      return Fail(Code::kCancelled, "stopped; nothing was written");
    return {};
  }

  const Unit& First(const Group& group) const { return plan_.units[group.units.front()]; }

  void MakeGroups() {
    std::map<std::pair<Unit::Action, std::string>, size_t> siblings;
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const Unit& unit = plan_.units[i];
      for (const std::string& tensor : unit.tensors) ++readers_[tensor];
      if (unit.action == Unit::Action::kEncode || unit.action == Unit::Action::kFromMxfp4) {
        const auto [at, added] =
            siblings.try_emplace({unit.action, SiblingGroup(unit.name)}, groups_.size());
        if (!added) {
          groups_[at->second].units.push_back(i);
          continue;
        }
      }
      groups_.push_back({.units = {i}});
    }
  }

  Result<std::vector<WeightRows>> ReadGroup(const Group& group) const {
    std::vector<WeightRows> rows;
    for (const size_t unit : group.units) {
      NIBBLE_ASSIGN(LinearData data, ReadUnit(source_, plan_, plan_.units[unit]));
      rows.emplace_back(std::move(data));
    }
    return rows;
  }

  const InputStatistics* Statistics(const Unit& unit) const {
    const bool wanted = options_.calibration != nullptr && options_.format == Format::kNvfp4;
    return wanted ? options_.calibration->Find(unit.name) : nullptr;
  }

  // An expert that the text never reached takes the range of the layer's other experts, so that all
  // of a layer are stored alike.
  void FindInputRanges() {
    inputs_.resize(plan_.units.size());
    std::map<std::string, float> of_layer;  // by projection
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const Unit& unit = plan_.units[i];
      const InputStatistics* statistics = Statistics(unit);
      if (statistics == nullptr) continue;
      inputs_[i].amax = statistics->amax;
      if (const auto layer = ExpertSiblings(unit.name))
        of_layer[*layer] = std::max(of_layer[*layer], statistics->amax);
    }
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const Unit& unit = plan_.units[i];
      const auto layer = ExpertSiblings(unit.name);
      if (inputs_[i].amax > 0.0f || !layer || !of_layer.contains(*layer)) continue;
      inputs_[i] = {.amax = of_layer.at(*layer), .borrowed = true};
    }
  }

  // Before anything is written: which linears get a pre_quant_scale is part of the files' headers.
  Status FindSmoothings() {
    if (!options_.smoothing || options_.layout != Layout::kModelOpt) return {};
    Progress progress("smoothing", static_cast<int64_t>(groups_.size()), Progress::Unit::kItems,
                      options_.quiet);
    for (Group& group : groups_) {
      NIBBLE_TRY(CheckCancelled());
      progress.Advance(1);
      const Unit& first = First(group);
      const InputStatistics* inputs = Statistics(first);
      if (first.action != Unit::Action::kEncode || inputs == nullptr || inputs->k != first.k ||
          inputs->column_amax.empty())
        continue;
      NIBBLE_ASSIGN(const std::vector<WeightRows> rows, ReadGroup(group));
      const EncoderFactory encoder = [&](float amax, Method method) {
        return EncoderFor(first, amax, method);
      };
      group.pre_quant_scale =
          FindSmoothing(rows, *inputs, encoder, options_.method, *options_.pool);
    }
    return {};
  }

  // How every quantised linear is stored. Copied NVFP4 keeps the input scale that it has.
  Status FindSchemes() {
    schemes_.resize(plan_.units.size());
    for (const Group& group : groups_) {
      for (const size_t i : group.units) {
        const Unit& unit = plan_.units[i];
        Scheme& scheme = schemes_[i];
        scheme.format = options_.format;
        if (options_.format == Format::kInt4) scheme.group = Int4Group(unit.k);
        if (unit.action == Unit::Action::kCopyCodes) {
          NIBBLE_ASSIGN(const LinearData data, ReadUnit(source_, plan_, unit));
          scheme.activations = data.view.input_scale > 0.0f;
          scheme.smoothed = data.view.input_multiplier != nullptr;
          if (scheme.smoothed && options_.layout == Layout::kCompressedTensors) {
            return Fail(Code::kInvalidArgument,
                        "{}: {} has a pre_quant_scale, which the compressed-tensors layout cannot "
                        "hold; use --layout modelopt",
                        source_.path(), unit.name);
          }
        } else if (unit.is_linear()) {
          scheme.activations = inputs_[i].amax > 0.0f;
          scheme.smoothed = !group.pre_quant_scale.empty();
        }
      }
    }
    return {};
  }

  std::vector<TensorSpec> OutputSpecs() const {
    std::vector<TensorSpec> specs;
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const Unit& unit = plan_.units[i];
      switch (unit.action) {
        case Unit::Action::kEncode:
        case Unit::Action::kCopyCodes:
        case Unit::Action::kFromMxfp4:
          std::ranges::move(LinearSpecs(unit.name, unit.n, unit.k, schemes_[i], options_.layout),
                            std::back_inserter(specs));
          break;
        case Unit::Action::kWiden:
          specs.push_back({unit.name + ".weight", DType::kBF16, {unit.n, unit.k}});
          break;
        case Unit::Action::kCopyBias:
          specs.push_back({unit.name + ".bias", BiasType(unit), {unit.n}});
          break;
        case Unit::Action::kCopy: {
          const TensorEntry& entry = *source_.Find(unit.name);
          specs.push_back({entry.name, entry.dtype, entry.shape});
          break;
        }
      }
    }
    return specs;
  }

  DType BiasType(const Unit& unit) const {
    const DType stored = source_.Find(unit.tensors.front())->dtype;
    return stored == DType::kBF16 ? DType::kBF16 : DType::kF32;
  }

  Status WriteGroup(const Group& group, formats::ShardedWriter& writer) {
    const Unit& first = First(group);
    switch (first.action) {
      case Unit::Action::kEncode:
        return Encode(group, writer);
      case Unit::Action::kFromMxfp4:
        return ConvertMxfp4(group, writer);
      case Unit::Action::kCopyCodes:
        return CopyCodes(group.units.front(), writer);
      case Unit::Action::kWiden:
        return Widen(first, writer);
      case Unit::Action::kCopyBias:
        return CopyBias(first, writer);
      case Unit::Action::kCopy:
        break;
    }
    NIBBLE_ASSIGN(const formats::TensorData data, source_.Read(first.name));
    return writer.Write(first.name, {data.view.data, static_cast<size_t>(data.view.bytes())});
  }

  std::unique_ptr<Encoder> EncoderFor(const Unit& unit, float amax, Method method) const {
    return MakeEncoder(
        {.format = options_.format,
         .method = method,
         .layout = options_.layout,
         .tensor_scale = TensorScale(amax, method, options_.layout, options_.rounding),
         .k = unit.k,
         .group = Int4Group(unit.k)});
  }

  // One tensor scale for the group: the largest magnitude of its members decides.
  Result<float> GroupMagnitude(const Group& group, const std::vector<WeightRows>& rows) const {
    float group_amax = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      const float amax = rows[i].LargestMagnitude(*options_.pool);
      if (!std::isfinite(amax)) {
        return Fail(Code::kCorruption, "{}: {} holds a value that is not finite", source_.path(),
                    plan_.units[group.units[i]].name);
      }
      group_amax = std::max(group_amax, amax);
    }
    if (group.pre_quant_scale.empty()) return group_amax;
    return LargestScaled(rows, group.pre_quant_scale, *options_.pool);
  }

  Status Encode(const Group& group, formats::ShardedWriter& writer) {
    NIBBLE_ASSIGN(const std::vector<WeightRows> rows, ReadGroup(group));
    NIBBLE_ASSIGN(const float amax, GroupMagnitude(group, rows));
    Method method = options_.method;
    std::vector<Encoded> encoded = EncodeGroup(group, rows, amax, method);
    // Four over six has another tensor scale than max, under which a weight may err more.
    if (method == Method::kFourOverSix && options_.format == Format::kNvfp4) {
      std::vector<Encoded> plain = EncodeGroup(group, rows, amax, Method::kMax);
      if (AnyErrsMore(encoded, plain)) {
        encoded = std::move(plain);
        method = Method::kMax;
      }
    }
    const float tensor_scale = TensorScale(amax, method, options_.layout, options_.rounding);
    for (size_t i = 0; i < rows.size(); ++i) {
      std::string note = group.pre_quant_scale.empty() ? "" : "smoothed";
      if (method != options_.method) note = "max: four over six erred more";
      NIBBLE_TRY(
          WriteEncoded(group, group.units[i], encoded[i], tensor_scale, std::move(note), writer));
    }
    return {};
  }

  std::vector<Encoded> EncodeGroup(const Group& group, const std::vector<WeightRows>& rows,
                                   float amax, Method method) const {
    const auto encoder = EncoderFor(First(group), amax, method);
    std::vector<Encoded> encoded;
    for (const WeightRows& weight : rows)
      encoded.push_back(EncodeRows(weight, *encoder, group.pre_quant_scale, *options_.pool));
    return encoded;
  }

  Status ConvertMxfp4(const Group& group, formats::ShardedWriter& writer) {
    NIBBLE_ASSIGN(const std::vector<WeightRows> rows, ReadGroup(group));
    int top = 0;
    for (const WeightRows& weight : rows) top = std::max(top, TopExponent(weight.view()));
    for (size_t i = 0; i < rows.size(); ++i) {
      const FromMxfp4 made = EncodeFromMxfp4(rows[i].view(), top, *options_.pool);
      std::string note = made.rounded_blocks == 0
                             ? "exact from mxfp4"
                             : fmt::format("from mxfp4, {} blocks rounded", made.rounded_blocks);
      NIBBLE_TRY(WriteEncoded(group, group.units[i], made.encoded, made.tensor_scale,
                              std::move(note), writer));
    }
    return {};
  }

  Status WriteEncoded(const Group& group, size_t index, const Encoded& encoded, float tensor_scale,
                      std::string note, formats::ShardedWriter& writer) {
    const Unit& unit = plan_.units[index];
    report_.borrowed_input_scales += inputs_[index].borrowed ? 1 : 0;
    report_.quantised.push_back({.module = unit.name,
                                 .n = unit.n,
                                 .k = unit.k,
                                 .relative_error = encoded.error.relative(),
                                 .largest_error = encoded.error.largest_relative(),
                                 .note = std::move(note)});
    return WriteLinear(writer, unit.name, unit.n, unit.k, schemes_[index], options_.layout,
                       {.codes = encoded.codes,
                        .scales = encoded.scales,
                        .tensor_scale = tensor_scale,
                        .input_scale = InputScale(index, group),
                        .pre_quant_scale = group.pre_quant_scale});
  }

  // amax / 2688 of what the linear saw, after smoothing.
  float InputScale(size_t index, const Group& group) const {
    if (group.pre_quant_scale.empty()) return inputs_[index].amax / kNvfp4Range;
    const InputStatistics* inputs = Statistics(plan_.units[index]);
    return inputs == nullptr ? 0.0f : inputs->LargestScaled(group.pre_quant_scale) / kNvfp4Range;
  }

  Status CopyCodes(size_t index, formats::ShardedWriter& writer) {
    const Unit& unit = plan_.units[index];
    NIBBLE_ASSIGN(const LinearData data, ReadUnit(source_, plan_, unit));
    const QuantView& view = data.view;
    ++report_.copied;
    std::vector<uint8_t> scales(view.scale_bytes());
    std::memcpy(scales.data(), view.scales, scales.size());
    if (view.format == WeightFormat::kNvfp4) {
      // NaN over zero codes, which some exporters wrote: other readers would multiply by it.
      std::ranges::replace(scales, uint8_t{0x7F}, E4M3FromFloat(1.0f));
      const bool inexact =
          options_.layout == Layout::kCompressedTensors && ExactDivisor(view.global_scale) == 0.0f;
      report_.inexact_tensor_scales += inexact ? 1 : 0;
    }
    EncodedLinear linear{.codes = {reinterpret_cast<const uint8_t*>(view.data),
                                   static_cast<size_t>(view.data_bytes())},
                         .scales = scales,
                         .tensor_scale = view.global_scale,
                         .input_scale = view.input_scale};
    if (view.input_multiplier != nullptr)
      linear.pre_quant_scale = {view.input_multiplier, static_cast<size_t>(unit.k)};
    return WriteLinear(writer, unit.name, unit.n, unit.k, schemes_[index], options_.layout, linear);
  }

  Status Widen(const Unit& unit, formats::ShardedWriter& writer) {
    NIBBLE_ASSIGN(LinearData data, ReadUnit(source_, plan_, unit));
    const WeightRows rows(std::move(data));
    std::vector<uint16_t> rounded(unit.n * unit.k);
    options_.pool->ParallelFor(unit.n, 16, [&](int64_t begin, int64_t end, int) {
      std::vector<float> row(unit.k), scratch(unit.k);
      for (int64_t i = begin; i < end; ++i) {
        rows.Row(i, row.data(), scratch.data());
        std::ranges::transform(row, rounded.begin() + i * unit.k, Bf16FromFloat);
      }
    });
    ++report_.widened;
    return writer.Write(unit.name + ".weight", BytesOf(rounded));
  }

  Status CopyBias(const Unit& unit, formats::ShardedWriter& writer) {
    NIBBLE_ASSIGN(
        const std::vector<float> bias,
        source_.ReadExpertBias(unit.experts, unit.expert, unit.projection, unit.n, plan_.experts));
    if (BiasType(unit) == DType::kF32) return writer.Write(unit.name + ".bias", BytesOf(bias));
    std::vector<uint16_t> rounded(bias.size());
    std::ranges::transform(bias, rounded.begin(), Bf16FromFloat);
    return writer.Write(unit.name + ".bias", BytesOf(rounded));
  }

  // Lets go of what nobody reads any more.
  void Release(const Unit& unit) {
    for (const std::string& name : unit.tensors) {
      if (--readers_[name] > 0) continue;
      const TensorEntry* entry = source_.Find(name);
      if (entry == nullptr) continue;
      source_.Release(*entry);
      progress_->Advance(entry->stored_bytes);
    }
  }

  Status WriteConfig(const std::string& folder) const {
    std::vector<OutputModule> modules;
    std::vector<std::string> kept;
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const Unit& unit = plan_.units[i];
      if (unit.is_linear() && unit.action != Unit::Action::kWiden)
        modules.push_back({unit.name, schemes_[i]});
    }
    for (const Kept& tensor : plan_.kept) {
      if (tensor.stored.empty()) {
        kept.push_back(tensor.module);
      } else {
        modules.push_back({tensor.module, {.format = Format::kBf16, .stored = tensor.stored}});
      }
    }
    return WriteConfigFiles(source_, folder, options_.layout, modules, kept);
  }

  const Checkpoint& source_;
  const QuantizeOptions& options_;
  const Plan& plan_;
  QuantizeReport& report_;
  Progress* progress_ = nullptr;
  std::vector<Group> groups_;
  std::vector<InputRange> inputs_;                    // parallel to plan_.units
  std::vector<Scheme> schemes_;                       // the same
  std::unordered_map<std::string, int64_t> readers_;  // units that still need a source tensor
};

Status CheckOptions(const QuantizeOptions& options, const std::string& destination) {
  const bool compressed_only = options.format == Format::kInt4 || options.format == Format::kFp8;
  if (compressed_only && options.layout == Layout::kModelOpt) {
    return Fail(Code::kInvalidArgument,
                "INT4 and FP8 are written in the compressed-tensors layout alone; use --layout "
                "compressed-tensors");
  }
  return CheckDestination(destination, options.replace);
}

}  // namespace

Result<QuantizeReport> QuantizeCheckpoint(const Checkpoint& source, const std::string& destination,
                                          const QuantizeOptions& options) {
  NIBBLE_TRY(CheckOptions(options, destination));
  NIBBLE_ASSIGN(const Plan plan, MakePlan(source, options.format, options.policy));
  if (std::ranges::none_of(plan.units, &Unit::is_linear)) {
    return Fail(Code::kInvalidArgument,
                "{}: no tensor would change: every matrix is kept in higher precision",
                source.path());
  }
  QuantizeReport report{.kept = plan.kept, .bytes_before = plan.bytes_before};
  NIBBLE_TRY(WriteBeside(destination, [&](const std::string& folder) {
    return Job(source, options, plan, &report).Run(folder);
  }));
  return report;
}

}  // namespace nibble::quantize
