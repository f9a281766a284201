#include "apps/step_bytes.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/random.h"
#include "kernels/even_routing.h"

namespace nibble::apps {
namespace {

constexpr int64_t kMostSteps = 32;  // enough for a mean

// Mixer, its output projection, the feed-forward block's two halves, and what they wait for.
constexpr double kPhasesPerLayer = 5;

// Experts of the layer that a step at `position` hits.
int64_t CountHit(const models::ExpertLayer& layer, int32_t batch, int64_t position,
                 std::vector<char>& hit) {
  hit.assign(static_cast<size_t>(layer.experts), 0);
  for (int32_t b = 0; b < batch; ++b) {
    const uint32_t key = engine::EvenKey(static_cast<uint64_t>(b), 0, position);
    const auto choice = kernels::ChooseEvenly(key, layer.even_salt, layer.experts, layer.top_k);
    for (int32_t i = 0; i < layer.top_k; ++i) hit[choice.expert(i, layer.experts)] = 1;
  }
  return std::ranges::count(hit, 1);
}

}  // namespace

StepBytes CountStepBytes(const models::ModelInfo& info, int32_t batch, int64_t first, int64_t steps,
                         bool even_routing) {
  const auto all = static_cast<double>(info.bytes_per_token);
  if (info.expert_layers.empty()) return {.bytes = all};
  steps = std::min(steps, kMostSteps);
  double hit = 0, likely = 0, chosen = 0;
  std::vector<char> scratch;
  for (const models::ExpertLayer& layer : info.expert_layers) {
    const double experts = layer.experts, top_k = layer.top_k;
    chosen += top_k;
    likely += experts * (1 - std::pow(1 - top_k / experts, batch));
    for (int64_t step = 0; even_routing && step < steps; ++step)
      hit += static_cast<double>(CountHit(layer, batch, first + step, scratch)) /
             static_cast<double>(steps);
  }
  if (!even_routing) hit = likely;
  const auto layers = static_cast<double>(info.expert_layers.size());
  const auto of_experts = static_cast<double>(info.sections[models::Section::kExperts]);
  return {.bytes = all - of_experts + of_experts / chosen * hit,
          .experts_hit = hit / layers,
          .experts_likely = likely / layers};
}

double PredictStepSeconds(const Machine& machine, const models::ModelInfo& info, double bytes) {
  return bytes / machine.read_bytes_per_second +
         kPhasesPerLayer * static_cast<double>(info.layers) * machine.phase_seconds;
}

}  // namespace nibble::apps
