// A step on its way: launched, its results not yet read.
//
// On a GPU the engine plans and launches step n + 1 while step n runs, and then reads step n: the
// tokens that n draws go to n + 1 on the device (Sampler::drawn), and the host learns of them, and
// of ends, one step late. A sequence that ended in n has then run in n + 1 for nothing; what that
// computed is dropped. Where steps run on the host itself, each is read as soon as it is launched.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "device/device.h"
#include "engine/batch_builder.h"
#include "engine/sampler.h"
#include "engine/sequence.h"

namespace nibble::engine {

struct LaunchedStep {
  struct Part {
    Sequence* sequence = nullptr;
    int64_t end = 0;  // its computed tokens after the step
  };
  std::vector<Part> parts;
  int64_t prompt_tokens = 0;
  std::vector<LogitsRow> rows;
  std::vector<std::shared_ptr<ActiveRequest>> requests;  // of the parts, which they keep alive
  SampledRows results;                                   // one per row
  std::unique_ptr<DeviceMark> begin;                     // of its work on the device
  std::unique_ptr<DeviceMark> done;

  // It was read, or will never be.
  void Forget() {
    parts.clear();
    rows.clear();
    requests.clear();
  }
  // Whether the host must have what the step gives before the next one is launched.
  bool read_at_once() const {
    for (const LogitsRow& row : rows)
      if (!row.sample && row.sequence->request.request.on_prompt_logits) return true;
    return false;
  }
};

}  // namespace nibble::engine
