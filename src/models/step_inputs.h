// The arrays of a step where ops read them: the engine's own on the host; on other devices in one
// of two places in turn, to which they travel beside the kernels of the step before, so that
// nothing stands between two steps.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "device/device.h"
#include "models/model.h"

namespace nibble::models {

class StepInputs {
 public:
  // On the device, for steps of at most `max`.
  static int64_t Bytes(const Device& device, const MaxStep& max);
  Status Prepare(Device& device, const MaxStep& max);

  // The batch as ops see it. Where the model has two sets of rope rows (long_rows > 0), positions
  // become rows of the rope table. The page table's stride grows by powers of two, so that launches
  // recorded for one batch fit the next. Valid until the next call.
  Batch Place(const Batch& batch, int64_t long_rows);
  // What reads the placed batch has been launched.
  void Launched();

 private:
  Device* device_ = nullptr;
  std::unique_ptr<UploadLane> lane_;               // null on the host
  std::vector<std::unique_ptr<DeviceMark>> used_;  // of the lane's slots
  int slot_ = 0;
  std::vector<int32_t> rope_rows_;
};

}  // namespace nibble::models
