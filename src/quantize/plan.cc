#include "quantize/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

namespace nibble::quantize {
namespace {

using formats::Checkpoint;
using formats::TensorEntry;

bool IsWide(WeightFormat format) {
  return format == WeightFormat::kBf16 || format == WeightFormat::kF16 ||
         format == WeightFormat::kF32;
}

bool IsTarget(WeightFormat stored, Format target) {
  return (stored == WeightFormat::kNvfp4 && target == Format::kNvfp4) ||
         (stored == WeightFormat::kMxfp4 && target == Format::kMxfp4);
}

// The module of a matrix that ReadLinear understands.
std::optional<std::string> LinearModule(const Checkpoint& source, const TensorEntry& entry) {
  for (const std::string_view suffix : {".weight", ".weight_packed", ".qweight"}) {
    if (!entry.name.ends_with(suffix)) continue;
    std::string module = entry.name.substr(0, entry.name.size() - suffix.size());
    if (source.LinearFormat(module)) return module;
  }
  return std::nullopt;
}

// Shapes of stacked experts: gate and up are (F, D), down is (D, F).
struct StackedExperts {
  std::string module;  // "model.layers.0.mlp.experts"
  int64_t count = 0;   // E
  int64_t f = 0;
  int64_t d = 0;
};

// Of the tensor of the gate_up projection; its partner decides whether the rows are the outputs,
// (E, 2F, D) and (E, D, F), or the columns, (E, D, 2F) and (E, F, D). U8 holds two values a byte.
std::optional<StackedExperts> FindStackedExperts(const Checkpoint& source,
                                                 const TensorEntry& entry) {
  for (const std::string_view suffix : {"", "_blocks"}) {
    const std::string ending = std::string("experts.gate_up_proj") + std::string(suffix);
    if (!entry.name.ends_with(ending)) continue;
    const std::string module = entry.name.substr(
        0, entry.name.size() - std::string(".gate_up_proj").size() - suffix.size());
    const TensorEntry* down = source.Find(module + ".down_proj" + std::string(suffix));
    if (down == nullptr || down->shape[0] != entry.shape[0]) return std::nullopt;
    const Shape& up = entry.shape;
    const Shape& lower = down->shape;
    if (!suffix.empty()) {  // (E, 2F, D/32, 16), (E, D, F/32, 16)
      if (up.rank() != 4 || lower.rank() != 4) return std::nullopt;
      return StackedExperts{module, up[0], up[1] / 2, lower[1]};
    }
    if (up.rank() != 3 || lower.rank() != 3) return std::nullopt;
    const int64_t packed = entry.dtype == DType::kU8 ? 2 : 1;
    if (up[1] == 2 * lower[2] * packed && up[2] * packed == lower[1])
      return StackedExperts{module, up[0], up[1] / 2, lower[1]};
    if (up[1] * packed == lower[2] && up[2] == 2 * lower[1] * packed)
      return StackedExperts{module, up[0], up[2] / 2, lower[2]};
  }
  return std::nullopt;
}

class Planner {
 public:
  Planner(const Checkpoint& source, Format format, const QuantizePolicy& policy)
      : source_(source), format_(format), policy_(policy) {
    const auto* type = source.config().if_contains("model_type");
    plan_.experts.interleaved = type != nullptr && *type == "gpt_oss";
  }

  Result<Plan> Make() {
    FindStoredFormats();
    for (const TensorEntry& entry : source_.tensors()) {
      if (const auto module = LinearModule(source_, entry)) {
        NIBBLE_TRY(AddLinear(*module));
      } else if (const auto experts = FindStackedExperts(source_, entry)) {
        NIBBLE_TRY(AddExperts(*experts));
      }
    }
    for (const TensorEntry& entry : source_.tensors()) {
      plan_.bytes_before += entry.stored_bytes;
      if (!consumed_.contains(entry.name))
        plan_.units.push_back({.name = entry.name, .tensors = {entry.name}});
    }
    return std::move(plan_);
  }

 private:
  // Whether somebody has quantised this checkpoint before: then only what is still wide changes.
  void FindStoredFormats() {
    for (const TensorEntry& entry : source_.tensors()) {
      const auto module = LinearModule(source_, entry);
      if (module && IsTarget(source_.LinearFormat(*module).value(), format_)) {
        quantised_before_ = true;
        return;
      }
    }
  }

  // Why the weight stays out of the target format, or "".
  std::string ReasonToStay(const std::string& module, WeightFormat stored, int64_t n, int64_t k) {
    if (format_ == Format::kBf16) return "";
    if (quantised_before_ && !IsWide(stored))
      return fmt::format("stored as {} already", WeightFormatName(stored));
    return ReasonToKeep(policy_, module, {n, k}, ColumnMultiple(format_));
  }

  // Of a kept weight's format, where it is not wide and stays.
  std::string StoredName(WeightFormat stored) const {
    return IsWide(stored) || !quantised_before_ ? "" : std::string(WeightFormatName(stored));
  }

  // The action for a weight that does not stay as it is.
  Result<Unit::Action> ActionFor(const std::string& module, WeightFormat stored) {
    if (format_ == Format::kBf16) return Unit::Action::kWiden;
    if (IsTarget(stored, format_)) return Unit::Action::kCopyCodes;
    if (stored == WeightFormat::kMxfp4 && format_ == Format::kNvfp4)
      return Unit::Action::kFromMxfp4;
    if (stored == WeightFormat::kNvfp4) {
      return Fail(Code::kInvalidArgument,
                  "{}: {} is NVFP4 already, and quantising it again would only lose precision; "
                  "quantise the original, or use --format bf16 to widen this one",
                  source_.path(), module);
    }
    return Unit::Action::kEncode;
  }

  Status AddLinear(const std::string& module) {
    NIBBLE_ASSIGN(const formats::LinearData data,
                  source_.ReadLinear(module, 0, 0, formats::LinearBytes::kUnchecked));
    Unit unit{.name = module,
              .n = data.view.n,
              .k = data.view.k,
              .stored = data.view.format,
              .tensors = source_.LinearTensors(module)};
    // What is in the target format already stays so whatever the policy says.
    const std::string reason =
        IsTarget(unit.stored, format_) ? "" : ReasonToStay(module, unit.stored, unit.n, unit.k);
    if (!reason.empty()) {
      plan_.kept.push_back({module, reason, StoredName(unit.stored)});
      // Kept in higher precision, which FP8 and 4-bit formats are not: their companions would not
      // fit the output's configuration.
      if (IsWide(unit.stored) || quantised_before_) return {};  // copied with the rest
      unit.action = Unit::Action::kWiden;
    } else {
      NIBBLE_ASSIGN(unit.action, ActionFor(module, unit.stored));
    }
    Add(std::move(unit));
    return {};
  }

  Status AddExperts(const StackedExperts& experts) {
    const auto& [module, count, f, d] = experts;
    const auto format = source_.ExpertFormat(module, 0, "gate_proj", f, d, plan_.experts);
    if (!format) return {};  // of no known form: copied with the rest
    for (const auto& [k, projection] : {std::pair{d, "gate_up_proj"}, std::pair{f, "down_proj"}}) {
      const std::string reason = ReasonToStay(module + "." + projection, *format, f, k);
      if (!IsTarget(*format, format_) && !reason.empty()) {
        plan_.kept.push_back({module, reason, StoredName(*format)});
        return {};
      }
    }
    for (int64_t expert = 0; expert < count; ++expert) {
      NIBBLE_TRY(AddExpert(module, expert, "gate_proj", f, d, *format));
      NIBBLE_TRY(AddExpert(module, expert, "up_proj", f, d, *format));
      NIBBLE_TRY(AddExpert(module, expert, "down_proj", d, f, *format));
    }
    return {};
  }

  Status AddExpert(const std::string& module, int64_t expert, const std::string& projection,
                   int64_t n, int64_t k, WeightFormat stored) {
    Unit unit{.name = fmt::format("{}.{}.{}", module, expert, projection),
              .n = n,
              .k = k,
              .stored = stored,
              .tensors = source_.ExpertTensors(module, expert, projection),
              .experts = module,
              .expert = expert,
              .projection = projection};
    NIBBLE_ASSIGN(unit.action, ActionFor(unit.name, stored));
    const std::string bias =
        module + (projection == "down_proj" ? ".down_proj_bias" : ".gate_up_proj_bias");
    std::erase(unit.tensors, bias);
    Unit of_bias = unit;
    Add(std::move(unit));
    if (const TensorEntry* entry = source_.Find(bias); entry != nullptr) {
      of_bias.action = Unit::Action::kCopyBias;
      of_bias.tensors = {entry->name};
      Add(std::move(of_bias));
    }
    return {};
  }

  void Add(Unit unit) {
    consumed_.insert(unit.tensors.begin(), unit.tensors.end());
    plan_.units.push_back(std::move(unit));
  }

  const Checkpoint& source_;
  const Format format_;
  const QuantizePolicy& policy_;
  bool quantised_before_ = false;
  Plan plan_;
  std::set<std::string, std::less<>> consumed_;
};

}  // namespace

Result<Plan> MakePlan(const Checkpoint& source, Format format, const QuantizePolicy& policy) {
  return Planner(source, format, policy).Make();
}

Result<formats::LinearData> ReadUnit(const Checkpoint& source, const Plan& plan, const Unit& unit) {
  if (unit.experts.empty()) return source.ReadLinear(unit.name, unit.n, unit.k);
  return source.ReadExpert(unit.experts, unit.expert, unit.projection, unit.n, unit.k,
                           plan.experts);
}

}  // namespace nibble::quantize
