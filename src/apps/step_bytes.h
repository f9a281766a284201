// What a decode step reads of a model's weights, and what that means on machines that are not here.
#pragma once

#include <cstdint>

#include "models/model.h"

namespace nibble::apps {

struct StepBytes {
  double bytes = 0;           // of weights
  double experts_hit = 0;     // per layer of experts, in the mean; 0: the model has none
  double experts_likely = 0;  // what random choices hit (kernels::LikelyHits)

  // Made-up weights choose by a hash in place of the router: then a figure counts only if as many
  // experts were hit as random choices hit.
  static constexpr double kTolerance = 0.05;
  bool hits_as_random() const;
};

// Of a step of `batch` sequences that hit so many experts of each layer, in the mean.
StepBytes CountStepBytes(const models::ModelInfo& info, int32_t batch, double experts_hit);

// Seconds of a step, from bytes and from what lies between two phases of it (a phase: all blocks of
// the device work on one matrix, then wait for each other).
struct Machine {
  const char* name;
  double read_bytes_per_second;
  double phase_seconds;
};
inline constexpr Machine kGb10 = {"GB10", 231e9, 1.0e-6};
inline constexpr Machine kH100 = {"H100", 3.0e12, 0.9e-6};

// Phases of a decode step: about so many per layer.
double PredictStepSeconds(const Machine& machine, const models::ModelInfo& info, double bytes);

}  // namespace nibble::apps
