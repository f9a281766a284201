// Recorded launches of decode steps: the first step of a shape runs as it is, the second is
// recorded, later ones are replayed. Shapes are what launches depend on; everything else is read on
// the device.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "device/device.h"
#include "kernels/recordings.h"
#include "models/model.h"

namespace nibble::models {

class StepGraphs {
 public:
  // Larger steps spend so long in kernels that launches do not show.
  static constexpr int64_t kMaxTokens = 256;

  // Runs `launch`, a step over `batch` as ops see it, or its recording. A template, so that no step
  // but the recorded one makes a std::function, which would allocate.
  template <typename Launch>
  void Run(const kernels::OpTable& ops, const Batch& batch, const KvPool& kv,
           const Launch& launch) {
    const auto tokens = static_cast<int64_t>(batch.tokens.size());
    const bool decode = batch.kv_len.size() == batch.tokens.size();
    Device& device = *ops.device;
    if (device.host_memory() || !ops.recordable || !decode || tokens > kMaxTokens) return launch();
    const Shape shape = {.arrays = batch.tokens.data(),
                         .tokens = tokens,
                         .rows = static_cast<int64_t>(batch.logits_rows.size()),
                         .page_stride = batch.max_pages,
                         .drawn = batch.drawn,
                         .pool = kv.id(),
                         .recording = kernels::RecordingNumber()};
    const auto [entry, first] = graphs_.try_emplace(shape);
    if (first) return launch();
    if (entry->second == nullptr) entry->second = device.Record(launch);
    if (entry->second == nullptr) return launch();
    entry->second->Launch();
  }

 private:
  struct Shape {
    const int32_t* arrays = nullptr;  // where StepInputs has put the batch
    int64_t tokens = 0;
    int64_t rows = 0;
    int64_t page_stride = 0;
    const int32_t* drawn = nullptr;
    uint64_t pool = 0;
    uint32_t recording = 0;
    auto operator<=>(const Shape&) const = default;
  };

  std::map<Shape, std::unique_ptr<DeviceGraph>> graphs_;
};

}  // namespace nibble::models
