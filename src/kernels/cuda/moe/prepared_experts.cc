#include "kernels/cuda/moe/prepared_experts.h"

#include <string_view>
#include <vector>

#include "kernels/cuda/linear/weight.h"

namespace nibble::kernels::cuda::moe {
namespace {

ExpertLinear LinearOf(const PackedWeight* weight, const float* bias) {
  if (weight == nullptr) return {};
  return {.tiles = AsCuda(*weight).tiles(), .bias = bias};
}

InputTransform TransformOf(const PackedWeight* weight) {
  if (weight == nullptr) return {};
  return {AsCuda(*weight).column_order(), AsCuda(*weight).input_multiplier()};
}

bool Changes(const InputTransform& transform) {
  return transform.order != nullptr || transform.multiplier != nullptr;
}

Status CheckSlices(std::string_view name, int slices, int most) {
  if (slices <= most) return {};
  return Fail(Code::kUnsupported,
              "{} weights of experts have {} columns (F16 counts twice, F32 three times): the CUDA "
              "backend takes at most {}",
              name, slices * kSliceColumns, most * kSliceColumns);
}

template <typename T>
Result<Buffer> ToDevice(const std::vector<T>& values, Device& device) {
  NIBBLE_ASSIGN(Buffer buffer, Buffer::Allocate(values.size() * sizeof(T), device));
  device.Upload(buffer.data(), values.data(), values.size() * sizeof(T));
  return buffer;
}

}  // namespace

ExpertFacts FactsOf(const ExpertWeights& weights) {
  if (weights.gate_up == nullptr) return {};
  ExpertFacts facts = {
      .expert = {.gate_up = LinearOf(weights.gate_up, weights.gate_up_bias),
                 .up = LinearOf(weights.up, nullptr),
                 .down = LinearOf(weights.down, weights.down_bias)},
      .transforms = {TransformOf(weights.gate_up),
                     TransformOf(weights.up != nullptr ? weights.up : weights.gate_up),
                     TransformOf(weights.down)},
  };
  facts.transforms_x = Changes(facts.transforms.gate_up) || Changes(facts.transforms.up);
  facts.transforms_h = Changes(facts.transforms.down);
  return facts;
}

void AddTo(const Expert& expert, WeightSet* gate_up, WeightSet* down) {
  if (expert.gate_up.tiles.data == nullptr) return;
  gate_up->Add(expert.gate_up.tiles);
  if (expert.up.tiles.data != nullptr) gate_up->Add(expert.up.tiles);
  down->Add(expert.down.tiles);
}

Result<std::unique_ptr<PreparedExperts>> PreparedExperts::Create(
    std::span<const ExpertWeights> experts, Device& device) {
  if (experts.size() > kMaxExperts)
    return Fail(Code::kUnsupported, "{} experts: the CUDA backend takes at most {}", experts.size(),
                kMaxExperts);
  std::unique_ptr<PreparedExperts> prepared(new PreparedExperts);
  std::vector<Expert> table;
  std::vector<ExpertTransforms> transforms;
  for (const ExpertWeights& weights : experts) {
    const ExpertFacts facts = FactsOf(weights);
    AddTo(facts.expert, &prepared->gate_up_, &prepared->down_);
    prepared->transforms_x_ = prepared->transforms_x_ || facts.transforms_x;
    prepared->transforms_h_ = prepared->transforms_h_ || facts.transforms_h;
    table.push_back(facts.expert);
    transforms.push_back(facts.transforms);
  }
  NIBBLE_TRY(CheckSlices("gate and up", prepared->gate_up_.slices, kMaxGateUpSlices));
  NIBBLE_TRY(CheckSlices("down", prepared->down_.slices, kMaxDownSlices));
  NIBBLE_ASSIGN(prepared->table_, ToDevice(table, device));
  if (prepared->transforms_x_ || prepared->transforms_h_) {
    NIBBLE_ASSIGN(prepared->transforms_, ToDevice(transforms, device));
  }
  return prepared;
}

}  // namespace nibble::kernels::cuda::moe
