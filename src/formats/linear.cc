// A linear as a view: Checkpoint::ReadLinear and kin.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "base/log.h"
#include "formats/checkpoint.h"
#include "formats/float_tensor.h"
#include "formats/gather.h"
#include "formats/int_weights.h"
#include "formats/json_file.h"
#include "formats/linear_parts.h"
#include "formats/linear_values.h"
#include "formats/made_up_linear.h"

namespace nibble::formats {
namespace {

// The weight without its bytes.
QuantView Outline(const LinearParts& parts) {
  QuantView view = {.format = parts.format,
                    .n = parts.n,
                    .k = parts.k,
                    .scale_block_n = parts.scale_block_n,
                    .scale_block_k = parts.scale_block_k};
  if (parts.scale != nullptr) view.scale_dtype = parts.scale->dtype;
  return view;
}

// Codes and scales that lie as QuantView describes them.
Result<LinearData> ReadAsViewed(const Checkpoint& checkpoint, const LinearParts& parts) {
  NIBBLE_ASSIGN(const TensorData weight, checkpoint.Read(*parts.weight));
  LinearData linear = {.view = Outline(parts), .owner = weight.owner};
  linear.view.data = weight.view.data;
  if (parts.scale != nullptr) {
    NIBBLE_ASSIGN(const TensorData scale, checkpoint.Read(*parts.scale));
    linear.view.scales = scale.view.data;
    linear.owner = JoinOwners({linear.owner, scale.owner});
  }
  return linear;
}

// All rows of it, none where its tensors are not all made up.
std::optional<LinearData> MakeUp(const Checkpoint& checkpoint, const LinearParts& parts) {
  if (parts.layout != CodeLayout::kAsViewed) return std::nullopt;
  const QuantView view = Outline(parts);
  return MakeUpLinear(view, checkpoint.MadeUp(*parts.weight),
                      parts.scale == nullptr ? nullptr : checkpoint.MadeUp(*parts.scale),
                      {.count = parts.n}, parts.scale != nullptr);
}

Status SetInputMultiplier(const Checkpoint& checkpoint, const TensorEntry& entry,
                          LinearData* linear) {
  NIBBLE_ASSIGN(const auto values, ReadFloats(checkpoint, entry, 0, 1, linear->view.k));
  const auto bad = std::ranges::find_if(values, [](float value) { return !std::isfinite(value); });
  if (bad != values.end()) {
    return Fail(Code::kCorruption, "element {} is {}, expected finite", bad - values.begin(), *bad);
  }
  auto owned = std::make_shared<std::vector<float>>(values);
  for (size_t j = 0; linear->view.column_order != nullptr && j < values.size(); ++j) {
    (*owned)[j] = values[static_cast<size_t>(linear->view.column_order[j])];
  }
  linear->view.input_multiplier = owned->data();
  linear->owner = JoinOwners({linear->owner, owned});
  return {};
}

}  // namespace

Result<LinearShape> Checkpoint::DescribeLinear(std::string_view prefix) const {
  NIBBLE_ASSIGN(const LinearParts parts, ClassifyLinear(*this, prefix));
  const QuantView view{.format = parts.format,
                       .n = parts.n,
                       .k = parts.k,
                       .scale_dtype = parts.scale != nullptr ? parts.scale->dtype : DType::kF32,
                       .scale_block_n = parts.scale_block_n,
                       .scale_block_k = parts.scale_block_k};
  const int64_t zeros = parts.zeros != nullptr ? parts.n * parts.groups() : 0;
  return LinearShape{parts.format, parts.n, parts.k,
                     view.data_bytes() + view.scale_bytes() + zeros};
}

Result<WeightFormat> Checkpoint::LinearFormat(std::string_view prefix) const {
  NIBBLE_ASSIGN(const LinearParts parts, ClassifyLinear(*this, prefix));
  return parts.format;
}

std::vector<std::string> Checkpoint::LinearTensors(std::string_view prefix) const {
  std::vector<std::string> names;
  const auto parts = ClassifyLinear(*this, prefix);
  if (!parts) return names;
  for (const TensorEntry* entry :
       {parts->weight, parts->scale, parts->zeros, parts->group_index, parts->shape,
        parts->global_scale, parts->input_scale, parts->input_multiplier, parts->unused}) {
    if (entry != nullptr) names.push_back(entry->name);
  }
  return names;
}

Result<LinearData> Checkpoint::ReadLinear(std::string_view prefix, int64_t n, int64_t k,
                                          LinearBytes bytes) const {
  NIBBLE_ASSIGN(const LinearParts parts, ClassifyLinear(*this, prefix));
  if ((n != 0 && n != parts.n) || (k != 0 && k != parts.k)) {
    return Fail(Code::kCorruption,
                "{}: tensor {}: {} {} is a {} linear with N = {}, K = {}; the architecture needs "
                "N = {}, K = {}",
                path_, Quoted(parts.weight->name), DTypeName(parts.weight->dtype),
                parts.weight->shape.ToString(), WeightFormatName(parts.format), parts.n, parts.k,
                n == 0 ? parts.n : n, k == 0 ? parts.k : k);
  }
  const auto made_up =
      bytes == LinearBytes::kMadeUp ? MakeUp(*this, parts) : std::optional<LinearData>();
  NIBBLE_ASSIGN(LinearData linear, made_up ? Result<LinearData>(*made_up)
                                   : parts.layout == CodeLayout::kAsViewed
                                       ? ReadAsViewed(*this, parts)
                                       : ReadIntegers(*this, parts));
  if (parts.global_scale != nullptr) {
    NIBBLE_ASSIGN(const float stored, ReadScalar(*parts.global_scale));
    NIBBLE_TRY(InTensor(*parts.global_scale,
                        SetGlobalScale(stored, parts.scalars_are_divisors, &linear.view)));
    WarnOfGlobalScale(*parts.global_scale, linear.view);
  }
  if (parts.input_scale != nullptr) {
    NIBBLE_ASSIGN(const float stored, ReadScalar(*parts.input_scale));
    NIBBLE_TRY(InTensor(*parts.input_scale,
                        SetInputScale(stored, parts.scalars_are_divisors, &linear.view)));
  }
  if (parts.input_multiplier != nullptr) {
    NIBBLE_TRY(InTensor(*parts.input_multiplier,
                        SetInputMultiplier(*this, *parts.input_multiplier, &linear)));
  }
  if (bytes != LinearBytes::kUnchecked && !made_up && parts.scale != nullptr) {
    NIBBLE_TRY(InTensor(*parts.scale, CheckScaleValues(linear.view)));
  }
  return linear;
}

Status Checkpoint::InTensor(const TensorEntry& entry, Status status) const {
  if (status) return status;
  return tl::unexpected<Error>(
      status.error().Context(fmt::format("{}: tensor {}", path_, Quoted(entry.name))));
}

void Checkpoint::WarnOfGlobalScale(const TensorEntry& entry, const QuantView& view) const {
  if (!IsUnlikelyGlobalScale(view) || warned_of_global_scale_.test_and_set()) return;
  LogWarning(
      "{}: tensor {}: the multiplier {} is outside 1e-9 to 1; if answers are noise, the file has a "
      "divisor where its names promise a multiplier, or the reverse",
      path_, Quoted(entry.name), view.global_scale);
}

}  // namespace nibble::formats
