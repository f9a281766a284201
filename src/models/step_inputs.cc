#include "models/step_inputs.h"

#include <bit>
#include <cstring>

#include "base/check.h"

namespace nibble::models {
namespace {

constexpr int64_t kSmallestStride = 16;  // pages
constexpr int64_t kAlignment = 64;
constexpr int kSlots = 2;  // of a lane

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t Stride(int64_t max_pages) {
  return static_cast<int64_t>(
      std::bit_ceil(static_cast<uint64_t>(std::max(max_pages, kSmallestStride))));
}

// Bytes of all arrays of a step, so that slots side by side are all aligned.
int64_t ArrayBytes(const MaxStep& max) {
  const int64_t sequences = max.sequences > 0 ? max.sequences : max.tokens;
  const int64_t per_token = 3 * sizeof(int32_t) + sizeof(int64_t);
  const int64_t per_sequence = 4 * sizeof(int32_t) + Stride(max.pages) * sizeof(int32_t);
  const int64_t per_row = 2 * sizeof(int32_t);
  constexpr int64_t kArrays = 11;
  return Aligned(max.tokens * per_token + (sequences + 1) * per_sequence + max.rows * per_row +
                 kArrays * kAlignment);
}

bool IsEveryToken(std::span<const int32_t> rows, size_t tokens) {
  if (rows.size() != tokens) return false;
  for (size_t i = 0; i < tokens; ++i)
    if (rows[i] != static_cast<int32_t>(i)) return false;
  return true;
}

}  // namespace

int64_t StepInputs::Bytes(const Device& device, const MaxStep& max) {
  return device.host_memory() ? 0 : kSlots * ArrayBytes(max);
}

Status StepInputs::Prepare(Device& device, const MaxStep& max) {
  rope_rows_.reserve(max.tokens);
  if (device.host_memory()) return {};
  device_ = &device;
  NIBBLE_ASSIGN(lane_, device.MakeLane(static_cast<size_t>(ArrayBytes(max))));
  for (int slot = 0; slot < kSlots; ++slot) used_.push_back(device.Mark());
  return {};
}

Batch StepInputs::Place(const Batch& batch, int64_t long_rows) {
  Batch placed = batch;
  placed.all_rows = IsEveryToken(batch.logits_rows, batch.tokens.size());
  if (long_rows > 0 && !batch.rope_sets.empty()) {
    rope_rows_.assign(batch.positions.begin(), batch.positions.end());
    for (size_t b = 0; b < batch.rope_sets.size(); ++b) {
      if (batch.rope_sets[b] == 0) continue;
      for (int32_t t = batch.q_start[b]; t < batch.q_start[b + 1]; ++t)
        rope_rows_[t] += static_cast<int32_t>(long_rows);
    }
    placed.positions = rope_rows_;
  }
  if (lane_ == nullptr) return placed;

  const UploadLane::Slot slot = lane_->Next();
  slot_ = slot.index;
  device_->Wait(*used_[slot_]);
  int64_t used = 0;
  const auto reserve = [&](int64_t bytes) {
    const int64_t at = used;
    used += Aligned(bytes);
    NIBBLE_CHECK(used <= static_cast<int64_t>(lane_->slot_bytes()),
                 "a step of {} tokens and {} sequences of {} pages is larger than Prepare was told",
                 batch.tokens.size(), batch.kv_len.size(), batch.max_pages);
    return at;
  };
  const auto place = [&]<typename T>(std::span<const T>* array) {
    if (array->empty()) return;
    const int64_t at = reserve(static_cast<int64_t>(array->size_bytes()));
    std::memcpy(slot.host + at, array->data(), array->size_bytes());
    *array = {reinterpret_cast<const T*>(slot.device + at), array->size()};
  };
  place(&placed.tokens);
  place(&placed.positions);
  place(&placed.slots);
  place(&placed.q_start);
  place(&placed.kv_len);
  place(&placed.logits_rows);
  place(&placed.state_slots);
  place(&placed.chunked);
  place(&placed.even_keys);
  place(&placed.drawn_slots);
  placed.max_pages = Stride(batch.max_pages);
  const auto sequences = static_cast<int64_t>(batch.kv_len.size());
  const int64_t at = reserve(sequences * placed.max_pages * static_cast<int64_t>(sizeof(int32_t)));
  auto* table = reinterpret_cast<int32_t*>(slot.host + at);
  for (int64_t b = 0; b < sequences; ++b) {
    const auto row = batch.page_table.subspan(b * batch.max_pages, batch.max_pages);
    std::memcpy(table + b * placed.max_pages, row.data(), row.size_bytes());
  }
  placed.page_table = {reinterpret_cast<const int32_t*>(slot.device + at),
                       static_cast<size_t>(sequences * placed.max_pages)};
  lane_->Send(slot, static_cast<size_t>(used));
  // A short wait, while the device is busy with the step before. Failures stay with the device.
  (void)lane_->Finish();
  return placed;
}

void StepInputs::Launched() {
  if (lane_ != nullptr) device_->Set(*used_[slot_]);
}

}  // namespace nibble::models
