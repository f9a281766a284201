// Recorded launches of decode steps: the first step of a shape runs as it is, the second is
// recorded, later ones are replayed. Shapes are what launches depend on; everything else is read on
// the device. A recording takes memory of the device that no plan knows, so that only the shapes
// used last keep theirs, and where there is no memory for one its shape goes on without.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "device/device.h"
#include "kernels/recordings.h"
#include "models/model.h"

namespace nibble::models {

class StepGraphs {
 public:
  // Larger steps spend so long in kernels that launches do not show.
  static constexpr int64_t kMaxTokens = 256;
  static constexpr size_t kMostShapes = 128;

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
                         .all_rows = batch.all_rows,
                         .page_stride = batch.max_pages,
                         .drawn = batch.drawn,
                         .tail = batch.tail != nullptr ? batch.tail->key() : nullptr,
                         .pool = kv.id(),
                         .recording = kernels::RecordingNumber()};
    const auto [entry, first] = shapes_.try_emplace(shape);
    Recording& recording = entry->second;
    recording.last_step = ++steps_;
    if (first) {
      ForgetTheOldest();
      return launch();
    }
    if (!std::exchange(recording.tried, true)) recording.graph = device.Record(launch);
    if (recording.graph == nullptr) return launch();
    recording.graph->Launch();
  }

 private:
  struct Shape {
    const int32_t* arrays = nullptr;  // where StepInputs has put the batch
    int64_t tokens = 0;
    int64_t rows = 0;
    bool all_rows = false;
    int64_t page_stride = 0;
    const int32_t* drawn = nullptr;
    const void* tail = nullptr;
    uint64_t pool = 0;
    uint32_t recording = 0;
    auto operator<=>(const Shape&) const = default;
  };

  struct Recording {
    std::unique_ptr<DeviceGraph> graph;
    bool tried = false;
    uint64_t last_step = 0;
  };

  // Its last step has been read by now: far fewer are under way than shapes are kept.
  void ForgetTheOldest() {
    if (shapes_.size() <= kMostShapes) return;
    shapes_.erase(std::ranges::min_element(
        shapes_, {}, [](const auto& entry) { return entry.second.last_step; }));
  }

  std::map<Shape, Recording> shapes_;
  uint64_t steps_ = 0;
};

}  // namespace nibble::models
