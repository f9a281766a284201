// The memory plan: what the engine may allocate, decided from numbers before anything is allocated.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "base/error.h"
#include "engine/engine.h"

namespace nibble::engine {

struct MemoryPlanInput {
  int64_t available_bytes = 0;  // now, with the weights already resident
  int64_t weight_bytes = 0;
  int64_t activation_bytes = 0;    // activations, logits and workspaces of the largest step
  int64_t kv_bytes_per_token = 0;  // of all layers
  int64_t state_bytes = 0;         // of all recurrent layers, per sequence
  int64_t max_positions = 0;       // of the model
  bool dedicated = false;          // the memory is the device's own: nothing else lives in it
};

// kInvalidArgument with the flag, the value and the allowed range.
Status CheckOptions(const EngineOptions& options, int64_t max_positions);

// Before any weight is loaded: whether they fit at all.
struct WeightsInput {
  int64_t weight_bytes = 0;
  std::string_view device;           // its name
  int64_t available_bytes = 0;       // there
  int64_t host_available_bytes = 0;  // of the host, where the device is another; else 0
};
// kResourceExhausted with the bytes that are missing and the flag or command that would help.
Status CheckWeightsFit(const WeightsInput& input, double memory_fraction);

// What a step holds at most where nobody says it. On a CPU prompts gain nothing from more, and who
// waits for a token waits for one step. On a GPU they do, and PromptBudget keeps steps short that
// others wait for.
inline constexpr int32_t kHostStepTokens = 512;
inline constexpr int32_t kDeviceStepTokens = 8192;
// Activations of such steps take at most this share of what the weights leave, down to steps of
// kHostStepTokens.
inline constexpr double kActivationShare = 0.125;

// A power of two. bytes_of(tokens): activations, logits and workspaces of steps of so many.
int32_t DefaultStepTokens(bool on_host, const MemoryPlanInput& input, double memory_fraction,
                          const std::function<int64_t(int32_t tokens)>& bytes_of);

// A request and its answer, as most of them are: sizes the default KV cache in memory that a
// machine has for everything. There it takes at most this share of what weights and activations
// leave: the prefix cache would fill whatever it gets.
inline constexpr int64_t kUsualSequenceTokens = 1024;
inline constexpr double kDefaultKvShare = 0.5;

// Snapshots of recurrent states take at most this share of what weights and activations leave.
inline constexpr double kSnapshotShare = 0.125;

// The options have been checked, and max_step_tokens is set. Without kv_bytes in them the KV cache
// holds max_sequences whole contexts, as far as memory_fraction goes, where the memory is
// dedicated; elsewhere the larger of one whole context and max_sequences of kUsualSequenceTokens,
// within kDefaultKvShare. The context is what the options ask for, and then lifts that share up to
// memory_fraction; else it is the model's or what the cache holds, whichever is less. An error
// names the bytes that are missing and the option that would make it fit.
Result<MemoryPlan> PlanMemory(const MemoryPlanInput& input, const EngineOptions& options);

}  // namespace nibble::engine
