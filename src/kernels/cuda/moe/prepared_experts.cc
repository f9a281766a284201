#include "kernels/cuda/moe/prepared_experts.h"

#include <string_view>
#include <vector>

#include "kernels/cuda/device_facts.h"
#include "kernels/cuda/linear/weight.h"

namespace nibble::kernels::cuda::moe {
namespace {

Source SourceOf(const WeightTiles& tiles, int64_t first_row) {
  return {.data = tiles.data + first_row / kTileRows * tiles.row_tile_bytes,
          .row_tile_bytes = static_cast<int32_t>(tiles.row_tile_bytes),
          .slice_stride = tiles.slice_stride(),
          .k_tiles = static_cast<int16_t>(tiles.k_tiles),
          .x_tiles = static_cast<int16_t>(tiles.x_tiles),
          .group_columns = static_cast<int16_t>(tiles.group_columns),
          .format = tiles.format};
}

Expert ExpertOf(const ExpertWeights& weights) {
  const WeightTiles& gate_up = AsCuda(*weights.gate_up).tiles();
  const WeightTiles& down = AsCuda(*weights.down).tiles();
  const bool apart = weights.up != nullptr;
  const WeightTiles& up = apart ? AsCuda(*weights.up).tiles() : gate_up;
  const int64_t f = down.k;
  // Without a gate there are no rows of up, and nobody looks for them.
  const int64_t first_up = apart || gate_up.n < 2 * f ? 0 : f;
  return {.gate = SourceOf(gate_up, 0),
          .up = SourceOf(up, first_up),
          .down = SourceOf(down, 0),
          .gate_scales = gate_up.row_scales,
          .up_scales = up.row_scales + first_up,
          .down_scales = down.row_scales,
          .gate_bias = weights.gate_up_bias,
          .up_bias = weights.gate_up_bias == nullptr ? nullptr : weights.gate_up_bias + f,
          .down_bias = weights.down_bias,
          .up_offset = static_cast<int32_t>(first_up % kTileRows)};
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
              "{} weights of experts have {} columns (F16 counts twice, F32 three times): on this "
              "GPU the CUDA backend takes at most {}",
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
      .expert = ExpertOf(weights),
      .transforms = {TransformOf(weights.gate_up),
                     TransformOf(weights.up != nullptr ? weights.up : weights.gate_up),
                     TransformOf(weights.down)},
  };
  facts.transforms_x = Changes(facts.transforms.gate_up) || Changes(facts.transforms.up);
  facts.transforms_h = Changes(facts.transforms.down);
  return facts;
}

void AddTo(const ExpertWeights& weights, WeightSet* gate_up, WeightSet* down) {
  if (weights.gate_up == nullptr) return;
  gate_up->Add(AsCuda(*weights.gate_up).tiles());
  if (weights.up != nullptr) gate_up->Add(AsCuda(*weights.up).tiles());
  down->Add(AsCuda(*weights.down).tiles());
}

Result<std::unique_ptr<PreparedExperts>> PreparedExperts::Create(
    std::span<const ExpertWeights> experts, Device& device) {
  if (experts.size() > kMaxExperts)
    return Fail(Code::kUnsupported, "{} experts: the CUDA backend takes at most {}", experts.size(),
                kMaxExperts);
  std::unique_ptr<PreparedExperts> prepared(new PreparedExperts);
  std::vector<Expert> table;
  std::vector<ExpertTransforms> transforms;
  std::vector<uint8_t> held;
  prepared->experts_ = static_cast<int64_t>(experts.size());
  std::vector<const std::byte*> data(2 * experts.size());
  std::vector<float> input_scales;
  for (const ExpertWeights& weights : experts) {
    for (const PackedWeight* weight : {weights.gate_up, weights.down}) {
      input_scales.push_back(weight == nullptr ? 0.0f : weight->input_scale());
      prepared->takes_w4a4_ = prepared->takes_w4a4_ && input_scales.back() > 0.0f;
    }
    const ExpertFacts facts = FactsOf(weights);
    AddTo(weights, &prepared->gate_up_, &prepared->down_);
    prepared->transforms_x_ = prepared->transforms_x_ || facts.transforms_x;
    prepared->transforms_h_ = prepared->transforms_h_ || facts.transforms_h;
    prepared->stacked_ = prepared->stacked_ && weights.up == nullptr;
    data[table.size()] = facts.expert.gate.data;
    data[experts.size() + table.size()] = facts.expert.down.data;
    table.push_back(facts.expert);
    held.push_back(weights.gate_up != nullptr);
    prepared->all_held_ = prepared->all_held_ && weights.gate_up != nullptr;
    prepared->biased_ =
        prepared->biased_ || weights.gate_up_bias != nullptr || weights.down_bias != nullptr;
    transforms.push_back(facts.transforms);
  }
  const bool large = HasLargeSharedMemory();
  NIBBLE_TRY(CheckSlices("gate and up", prepared->gate_up_.slices,
                         large ? kMaxGateUpSlices : kMaxGateUpSlicesOfSmall));
  NIBBLE_TRY(
      CheckSlices("down", prepared->down_.slices, large ? kMaxDownSlices : kMaxDownSlicesOfSmall));
  NIBBLE_ASSIGN(prepared->table_, ToDevice(table, device));
  NIBBLE_ASSIGN(prepared->data_, ToDevice(data, device));
  NIBBLE_ASSIGN(prepared->held_, ToDevice(held, device));
  prepared->takes_w4a4_ = prepared->takes_w4a4_ && prepared->stacked_ &&
                          prepared->gate_up_.uniform && prepared->down_.uniform;
  if (prepared->takes_w4a4_) {
    NIBBLE_ASSIGN(prepared->input_scales_, ToDevice(input_scales, device));
  }
  if (prepared->transforms_x_ || prepared->transforms_h_) {
    NIBBLE_ASSIGN(prepared->transforms_, ToDevice(transforms, device));
  }
  return prepared;
}

}  // namespace nibble::kernels::cuda::moe
