// What the walks over a model's weight table share: which tensors were used, what is left over, how
// many bytes and formats there are. Used by LoadModel and DescribeModel alone.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/log.h"
#include "formats/checkpoint.h"
#include "models/model.h"
#include "models/weights.h"

namespace nibble::models {

// Vectors are kept in FP32 and count in the bytes per token as the 16 bits that they are published
// in.
inline constexpr int64_t kVectorBytes = 2;

// Shared by both walks: which tensors were used, what is left over, how many bytes and formats
// there are.
class TableWalk : public WeightVisitor {
 public:
  explicit TableWalk(const formats::Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  void Ignore(std::string_view suffix) override { ignored_.emplace_back(suffix); }
  void IgnorePrefix(std::string_view prefix) override { ignored_prefixes_.emplace_back(prefix); }

  const Status& status() const { return status_; }

  void TakeCounts(ModelInfo* info) const {
    info->weight_bytes = weight_bytes_;
    info->sections = sections_;
    info->bytes_per_token = sections_.total();
    info->parameters = parameters_;
    info->active_parameters = static_cast<int64_t>(std::llround(active_parameters_));
    info->weight_summary = Summary();
  }

  // "210 nvfp4, 61 bf16"; "210 nvfp4, 88 bf16 (27 of them dequantised from nvfp4)"
  std::string Summary() const {
    std::vector<std::string> from;
    for (const auto& [format, count] : dequantised_)
      from.push_back(
          fmt::format("{} of them dequantised from {}", count, WeightFormatName(format)));
    std::vector<std::string> parts;
    for (const auto& [format, count] : formats_) {
      std::string part = fmt::format("{} {}", count, WeightFormatName(format));
      if (format == WeightFormat::kBf16 && !from.empty())
        part += fmt::format(" ({})", fmt::join(from, ", "));
      parts.push_back(std::move(part));
    }
    return fmt::format("{}", fmt::join(parts, ", "));
  }

  // Tensors that nobody asked for and that the model does not know either.
  std::vector<std::string> LeftOver() const {
    std::vector<std::string> names;
    for (const formats::TensorEntry& entry : checkpoint_.tensors()) {
      if (used_.contains(entry.name)) continue;
      if (!IsIgnored(entry.name)) names.push_back(entry.name);
    }
    return names;
  }

  // One line about them; they do no harm.
  void ReportLeftOver() const {
    const std::vector<std::string> names = LeftOver();
    if (names.empty()) return;
    LogWarning("{}: {} tensors are not used by this model, the first is {}", checkpoint_.path(),
               names.size(), names.front());
  }

 protected:
  void Fail(Error error) {
    if (status_) status_ = tl::unexpected(std::move(error));
  }
  void Use(const std::string& name) {
    const formats::TensorEntry* entry =
        checkpoint_.Find(name);  // stored under a wrapper's name, perhaps
    used_.insert(entry != nullptr ? entry->name : name);
  }
  void UseLinear(const std::string& prefix) {
    for (std::string& name : checkpoint_.LinearTensors(prefix)) used_.insert(std::move(name));
  }
  void UseStored(std::vector<std::string> names) {
    for (std::string& name : names) used_.insert(std::move(name));
  }
  void UseExpert(const ExpertsSpec& spec, int64_t expert, std::string_view projection) {
    for (std::string& name : checkpoint_.ExpertTensors(spec.prefix, expert, projection))
      used_.insert(std::move(name));
  }
  // share: the part of it that one token uses. tensors: 0 for more of one that was counted.
  void Count(Section section, WeightFormat format, int64_t elements, int64_t resident, double share,
             int64_t tensors = 1) {
    formats_[format] += tensors;
    parameters_ += elements;
    if (section != Section::kDraft) active_parameters_ += static_cast<double>(elements) * share;
    weight_bytes_ += resident;
    sections_[section] += std::llround(static_cast<double>(resident) * share);
  }
  // One of those counted as BF16 is stored in another format.
  void CountDequantised(WeightFormat stored) {
    if (stored != WeightFormat::kBf16) ++dequantised_[stored];
  }
  void CountVector(Section section, int64_t n, double share = 1.0) {
    weight_bytes_ += n * 4;
    parameters_ += n;
    if (section != Section::kDraft) active_parameters_ += static_cast<double>(n) * share;
    sections_[section] += std::llround(static_cast<double>(n * kVectorBytes) * share);
  }
  static double ExpertShare(const ExpertsSpec& spec) {
    return static_cast<double>(spec.top_k) / static_cast<double>(spec.experts);
  }

  const formats::Checkpoint& checkpoint_;
  Status status_;

 private:
  bool IsIgnored(const std::string& name) const {
    const std::string plain = formats::PlainName(name);
    return std::ranges::any_of(ignored_, [&](const auto& s) { return name.ends_with(s); }) ||
           std::ranges::any_of(ignored_prefixes_,
                               [&](const auto& s) { return plain.starts_with(s); });
  }

  std::unordered_set<std::string> used_;
  std::vector<std::string> ignored_;
  std::vector<std::string> ignored_prefixes_;
  std::map<WeightFormat, int64_t> formats_;
  std::map<WeightFormat, int64_t> dequantised_;  // by stored format
  int64_t weight_bytes_ = 0;
  SectionBytes sections_;
  int64_t parameters_ = 0;
  double active_parameters_ = 0;
};

// The projections of an expert, in the order of its weights.
struct Projection {
  std::string_view name;
  int64_t n = 0;
  int64_t k = 0;
};

inline std::vector<Projection> InputProjections(const ExpertsSpec& spec) {
  const Projection up = {"up_proj", spec.f, spec.d};
  if (!spec.gated) return {up};
  return {{"gate_proj", spec.f, spec.d}, up};
}

inline Projection OutputProjection(const ExpertsSpec& spec) {
  return {"down_proj", spec.d, spec.f};
}

inline std::string WithoutWeightSuffix(std::string name) {
  if (name.ends_with(".weight")) name.resize(name.size() - 7);
  return name;
}

}  // namespace nibble::models
