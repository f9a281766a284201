#include "engine/stats.h"

#include <algorithm>

#include "base/check.h"

namespace nibble::engine {
namespace {

constexpr double kFirstToken[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kTokenLatency[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                    .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
constexpr double kRequestLatency[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                      30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
constexpr double kIterationTokens[] = {1,   8,    16,   32,   64,   128,  256,
                                       512, 1024, 2048, 4096, 8192, 16384};
constexpr double kChoices[] = {1, 2, 5, 10, 20};
constexpr double kLengths[] = {1,   2,   5,   10,  20,  50,  100, 200, 500, 1e3, 2e3,
                               5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7};

}  // namespace

Histogram::Histogram(std::span<const double> bounds) : bounds_(bounds) {
  NIBBLE_CHECK(bounds.size() <= kMaxBounds, "{} histogram borders", bounds.size());
}

void Histogram::Observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  ++counts_[bucket];
  ++count_;
  sum_ += value;
}

std::span<const double> FirstTokenBounds() { return kFirstToken; }
std::span<const double> TokenLatencyBounds() { return kTokenLatency; }
std::span<const double> RequestLatencyBounds() { return kRequestLatency; }
std::span<const double> IterationTokensBounds() { return kIterationTokens; }
std::span<const double> ChoicesBounds() { return kChoices; }

std::span<const double> LengthBounds(int64_t max_model_len) {
  const std::span<const double> all = kLengths;
  const auto end = std::upper_bound(all.begin(), all.end(), static_cast<double>(max_model_len));
  return all.first(static_cast<size_t>(end - all.begin()));
}

EngineStats::EngineStats(int64_t max_model_len)
    : time_to_first_token_seconds(FirstTokenBounds()),
      inter_token_latency_seconds(TokenLatencyBounds()),
      request_time_per_output_token_seconds(TokenLatencyBounds()),
      e2e_request_latency_seconds(RequestLatencyBounds()),
      request_queue_time_seconds(RequestLatencyBounds()),
      request_inference_time_seconds(RequestLatencyBounds()),
      request_prefill_time_seconds(RequestLatencyBounds()),
      request_decode_time_seconds(RequestLatencyBounds()),
      request_prompt_tokens(LengthBounds(max_model_len)),
      request_generation_tokens(LengthBounds(max_model_len)),
      request_max_num_generation_tokens(LengthBounds(max_model_len)),
      request_params_max_tokens(LengthBounds(max_model_len)),
      request_prefill_kv_computed_tokens(LengthBounds(max_model_len)),
      iteration_tokens_total(IterationTokensBounds()),
      request_params_n(ChoicesBounds()) {}

}  // namespace nibble::engine
