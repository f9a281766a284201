// The arrays of a step where ops read them: the engine's own on the host, copies in one upload on
// other devices.
#pragma once

#include <cstdint>
#include <vector>

#include "device/device.h"
#include "models/model.h"
#include "models/scratch_arena.h"

namespace nibble::models {

class StepInputs {
 public:
  // Room for steps of at most `max`.
  void Carve(ScratchArena& arena, const Device& device, const MaxStep& max);
  void Prepare(const MaxStep& max);

  // The batch as ops see it. Where the model has two sets of rope rows (long_rows > 0), positions
  // become rows of the rope table. The page table's stride grows by powers of two, so that launches
  // recorded for one batch fit the next. Valid until the next call.
  Batch Place(const Batch& batch, int64_t long_rows, Device& device);

 private:
  std::byte* arrays_ = nullptr;     // on the device
  std::vector<std::byte> staging_;  // the same on the host
  std::vector<int32_t> rope_rows_;
};

}  // namespace nibble::models
