// Experts of a mixture, one projection at a time: Checkpoint::ReadExpert and kin.
#include <string>

#include "base/check.h"
#include "formats/checkpoint.h"
#include "formats/float_tensor.h"
#include "formats/json_file.h"
#include "formats/linear_values.h"
#include "formats/stacked_experts.h"

namespace nibble::formats {
namespace {

struct ProjectionName {
  Projection projection;
  std::string_view name;
  std::string_view alias;  // Mixtral's
};

constexpr ProjectionName kProjections[] = {{Projection::kGate, "gate_proj", "w1"},
                                           {Projection::kUp, "up_proj", "w3"},
                                           {Projection::kDown, "down_proj", "w2"}};

const ProjectionName& FindProjection(std::string_view name) {
  for (const ProjectionName& known : kProjections) {
    if (known.name == name) return known;
  }
  NIBBLE_CHECK(false, "projection {}", name);
  return kProjections[0];
}

bool HasLinear(const Checkpoint& checkpoint, const std::string& prefix) {
  return checkpoint.Find(prefix + ".weight") != nullptr ||
         checkpoint.Find(prefix + ".weight_packed") != nullptr ||
         checkpoint.Find(prefix + ".qweight") != nullptr;
}

// Prefix of the expert's own linear, "" if it has none.
std::string OwnPrefix(const Checkpoint& checkpoint, std::string_view experts, int64_t expert,
                      const ProjectionName& projection) {
  for (const std::string_view name : {projection.name, projection.alias}) {
    std::string prefix = fmt::format("{}.{}.{}", experts, expert, name);
    if (HasLinear(checkpoint, prefix)) return prefix;
  }
  return "";
}

}  // namespace

Result<LinearData> Checkpoint::ReadExpert(std::string_view experts, int64_t expert,
                                          std::string_view projection, int64_t n, int64_t k,
                                          const ExpertLayout& layout, LinearBytes bytes) const {
  const ProjectionName& known = FindProjection(projection);
  const std::string own = OwnPrefix(*this, experts, expert, known);
  if (!own.empty()) return ReadLinear(own, n, k, bytes);
  NIBBLE_ASSIGN(const StackedLinear linear,
                ClassifyStack(*this, experts, expert, known.projection, n, k, layout));
  const auto made_up = bytes == LinearBytes::kMadeUp ? MakeUpStack(*this, linear, expert)
                                                     : std::optional<LinearData>();
  NIBBLE_ASSIGN(LinearData data,
                made_up ? Result<LinearData>(*made_up) : ReadStack(*this, linear, expert));
  const ExpertStack& stack = linear.stack;
  const auto read_scalar = [&](const TensorEntry& entry) -> Result<float> {
    NIBBLE_ASSIGN(const int64_t at, ScalarIndex(*this, entry, linear, known.projection, expert));
    NIBBLE_ASSIGN(const auto values, ReadFloats(*this, entry, at, 1, 1));
    return values[0];
  };
  if (stack.global_scale != nullptr) {
    NIBBLE_ASSIGN(const float stored, read_scalar(*stack.global_scale));
    NIBBLE_TRY(InTensor(*stack.global_scale, SetGlobalScale(stored, false, &data.view)));
    WarnOfGlobalScale(*stack.global_scale, data.view);
  }
  if (stack.input_scale != nullptr) {
    NIBBLE_ASSIGN(const float stored, read_scalar(*stack.input_scale));
    NIBBLE_TRY(InTensor(*stack.input_scale, SetInputScale(stored, false, &data.view)));
  }
  if (bytes != LinearBytes::kUnchecked && !made_up && stack.scale != nullptr) {
    if (const Status status = CheckScaleValues(data.view); !status) {
      return tl::unexpected<Error>(status.error().Context(fmt::format(
          "{}: tensor {}: expert {}, {}", path_, Quoted(stack.scale->name), expert, projection)));
    }
  }
  return data;
}

Result<LinearShape> Checkpoint::DescribeExpert(std::string_view experts, int64_t expert,
                                               std::string_view projection, int64_t n, int64_t k,
                                               const ExpertLayout& layout) const {
  const ProjectionName& known = FindProjection(projection);
  const std::string own = OwnPrefix(*this, experts, expert, known);
  if (!own.empty()) return DescribeLinear(own);
  NIBBLE_ASSIGN(const StackedLinear linear,
                ClassifyStack(*this, experts, expert, known.projection, n, k, layout));
  const TensorEntry* scale = linear.stack.scale;
  const QuantView view{.format = linear.format,
                       .n = n,
                       .k = k,
                       .scale_dtype = scale != nullptr ? scale->dtype : DType::kF32,
                       .scale_block_n = linear.scale_block_n,
                       .scale_block_k = linear.scale_block_k};
  return LinearShape{linear.format, n, k, view.data_bytes() + view.scale_bytes()};
}

Result<WeightFormat> Checkpoint::ExpertFormat(std::string_view experts, int64_t expert,
                                              std::string_view projection, int64_t n, int64_t k,
                                              const ExpertLayout& layout) const {
  NIBBLE_ASSIGN(const LinearShape shape, DescribeExpert(experts, expert, projection, n, k, layout));
  return shape.format;
}

std::string Checkpoint::ExpertModule(std::string_view experts, int64_t expert,
                                     std::string_view projection) const {
  std::string own = OwnPrefix(*this, experts, expert, FindProjection(projection));
  return own.empty() ? fmt::format("{}.{}.{}", experts, expert, projection) : own;
}

std::vector<std::string> Checkpoint::ExpertTensors(std::string_view experts, int64_t expert,
                                                   std::string_view projection) const {
  const ProjectionName& known = FindProjection(projection);
  const std::string own = OwnPrefix(*this, experts, expert, known);
  if (!own.empty()) {
    std::vector<std::string> names = LinearTensors(own);
    if (const TensorEntry* bias = Find(own + ".bias")) names.push_back(bias->name);
    return names;
  }
  std::vector<std::string> names;
  if (const auto stack = FindExpertStack(*this, experts, known.projection)) {
    for (const TensorEntry* entry :
         {stack->weight, stack->scale, stack->global_scale, stack->input_scale}) {
      if (entry != nullptr) names.push_back(entry->name);
    }
  }
  bool is_pair = false;
  const TensorEntry* bias = FindExpertBias(*this, experts, known.projection, &is_pair);
  if (bias != nullptr) names.push_back(bias->name);
  return names;
}

Result<std::vector<float>> Checkpoint::ReadExpertBias(std::string_view experts, int64_t expert,
                                                      std::string_view projection, int64_t n,
                                                      const ExpertLayout& layout) const {
  const ProjectionName& known = FindProjection(projection);
  for (const std::string_view name : {known.name, known.alias}) {
    const TensorEntry* own = Find(fmt::format("{}.{}.{}.bias", experts, expert, name));
    if (own == nullptr) continue;
    if (own->shape.elements() == n) return ReadFloats(*this, *own, 0, 1, n);
    return Fail(Code::kCorruption, "{}: tensor {}: shape {}, expected [{}]", path_,
                Quoted(own->name), own->shape.ToString(), n);
  }
  bool is_pair = false;
  const TensorEntry* bias = FindExpertBias(*this, experts, known.projection, &is_pair);
  if (bias == nullptr) return std::vector<float>();
  const int64_t row = is_pair ? 2 * n : n;
  if (bias->shape.rank() != 2 || bias->shape[1] != row || expert < 0 || expert >= bias->shape[0]) {
    return Fail(Code::kCorruption,
                "{}: tensor {}: shape {}, expected [experts, {}] with an expert {}", path_,
                Quoted(bias->name), bias->shape.ToString(), row, expert);
  }
  const RowSelection rows = ProjectionRows(known.projection, is_pair, n, layout);
  return ReadFloats(*this, *bias, expert * row + rows.first, rows.step, n);
}

}  // namespace nibble::formats
