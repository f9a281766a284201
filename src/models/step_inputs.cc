#include "models/step_inputs.h"

#include <bit>
#include <cstring>

#include "base/check.h"

namespace nibble::models {
namespace {

constexpr int64_t kSmallestStride = 16;  // pages

int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t Stride(int64_t max_pages) {
  return static_cast<int64_t>(
      std::bit_ceil(static_cast<uint64_t>(std::max(max_pages, kSmallestStride))));
}

// Bytes of all arrays of a step.
int64_t ArrayBytes(const MaxStep& max) {
  const int64_t sequences = max.sequences > 0 ? max.sequences : max.tokens;
  const int64_t per_token = 3 * sizeof(int32_t) + sizeof(int64_t);
  const int64_t per_sequence = 4 * sizeof(int32_t) + Stride(max.pages) * sizeof(int32_t);
  constexpr int64_t kArrays = 10;
  return max.tokens * per_token + (sequences + 1) * per_sequence +
         max.rows * static_cast<int64_t>(sizeof(int32_t)) + kArrays * 64;
}

}  // namespace

void StepInputs::Carve(ScratchArena& arena, const Device& device, const MaxStep& max) {
  if (!device.host_memory()) arena.Take(&arrays_, ArrayBytes(max));
}

void StepInputs::Prepare(const MaxStep& max) {
  rope_rows_.reserve(max.tokens);
  if (arrays_ != nullptr) staging_.resize(ArrayBytes(max));
}

Batch StepInputs::Place(const Batch& batch, int64_t long_rows, Device& device) {
  Batch placed = batch;
  if (long_rows > 0 && !batch.rope_sets.empty()) {
    rope_rows_.assign(batch.positions.begin(), batch.positions.end());
    for (size_t b = 0; b < batch.rope_sets.size(); ++b) {
      if (batch.rope_sets[b] == 0) continue;
      for (int32_t t = batch.q_start[b]; t < batch.q_start[b + 1]; ++t)
        rope_rows_[t] += static_cast<int32_t>(long_rows);
    }
    placed.positions = rope_rows_;
  }
  if (arrays_ == nullptr) return placed;

  int64_t used = 0;
  const auto reserve = [&](int64_t bytes) {
    const int64_t at = used;
    used += Aligned(bytes);
    NIBBLE_CHECK(used <= static_cast<int64_t>(staging_.size()),
                 "a step of {} tokens and {} sequences of {} pages is larger than Prepare was told",
                 batch.tokens.size(), batch.kv_len.size(), batch.max_pages);
    return at;
  };
  const auto place = [&]<typename T>(std::span<const T>* array) {
    if (array->empty()) return;
    const int64_t at = reserve(static_cast<int64_t>(array->size_bytes()));
    std::memcpy(staging_.data() + at, array->data(), array->size_bytes());
    *array = {reinterpret_cast<const T*>(arrays_ + at), array->size()};
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
  placed.max_pages = Stride(batch.max_pages);
  const auto sequences = static_cast<int64_t>(batch.kv_len.size());
  const int64_t at = reserve(sequences * placed.max_pages * static_cast<int64_t>(sizeof(int32_t)));
  auto* table = reinterpret_cast<int32_t*>(staging_.data() + at);
  for (int64_t b = 0; b < sequences; ++b) {
    const auto row = batch.page_table.subspan(b * batch.max_pages, batch.max_pages);
    std::memcpy(table + b * placed.max_pages, row.data(), row.size_bytes());
  }
  placed.page_table = {reinterpret_cast<const int32_t*>(arrays_ + at),
                       static_cast<size_t>(sequences * placed.max_pages)};
  device.Upload(arrays_, staging_.data(), used);
  return placed;
}

}  // namespace nibble::models
