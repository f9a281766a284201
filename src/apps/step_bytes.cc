#include "apps/step_bytes.h"

#include <cmath>

#include "kernels/likely_hits.h"

namespace nibble::apps {
namespace {

// Mixer, its output projection, the feed-forward block's two halves, and what they wait for.
constexpr double kPhasesPerLayer = 5;

}  // namespace

bool StepBytes::hits_as_random() const {
  return std::abs(experts_hit - experts_likely) <= kTolerance * experts_likely;
}

StepBytes CountStepBytes(const models::ModelInfo& info, int32_t batch, double experts_hit) {
  const auto all = static_cast<double>(info.bytes_per_token);
  if (info.expert_layers.empty()) return {.bytes = all};
  double likely = 0, chosen = 0;  // over all layers
  for (const models::ExpertLayer& layer : info.expert_layers) {
    chosen += layer.top_k;
    likely += kernels::LikelyHits(layer.experts, layer.top_k, batch);
  }
  const auto layers = static_cast<double>(info.expert_layers.size());
  const auto of_experts = static_cast<double>(info.sections[models::Section::kExperts]);
  return {.bytes = all - of_experts + of_experts / chosen * experts_hit * layers,
          .experts_hit = experts_hit,
          .experts_likely = likely / layers};
}

double PredictStepSeconds(const Machine& machine, const models::ModelInfo& info, double bytes) {
  return bytes / machine.read_bytes_per_second +
         kPhasesPerLayer * static_cast<double>(info.layers) * machine.phase_seconds;
}

}  // namespace nibble::apps
