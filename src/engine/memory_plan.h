// The memory plan: what the engine may allocate, decided from numbers before anything is allocated.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "engine/engine.h"

namespace nibble::engine {

struct MemoryPlanInput {
  int64_t available_bytes = 0;  // now, with the weights already resident
  int64_t weight_bytes = 0;
  int64_t activation_bytes = 0;    // activations, logits and workspaces of the largest step
  int64_t kv_bytes_per_token = 0;  // of all layers
  int64_t max_positions = 0;       // of the model
};

// kInvalidArgument with the flag, the value and the allowed range.
Status CheckOptions(const EngineOptions& options, int64_t max_positions);

// The options have been checked. The context is what the options ask for, else the model's or what
// fits, whichever is less. The pool holds max_sequences such contexts if it may; kv_bytes of the
// options overrides that. An error names the bytes that are missing and the option that would make
// it fit.
Result<MemoryPlan> PlanMemory(const MemoryPlanInput& input, const EngineOptions& options);

}  // namespace nibble::engine
