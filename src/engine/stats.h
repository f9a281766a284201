// What the engine counts for /metrics: counters, gauges and histograms with vLLM's bucket borders.
//
// EngineStats is a plain value. The engine thread fills its own and hands out copies under a lock
// once per step, so that a reader sees one moment and never half of a step.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace nibble::engine {

// Counts of observations per bucket, as Prometheus wants them: bucket i counts values <= bounds[i],
// not cumulated; the last one counts the rest (+Inf). At most kMaxBounds borders, so that a copy
// allocates nothing.
class Histogram {
 public:
  static constexpr size_t kMaxBounds = 31;

  Histogram() = default;
  // `bounds` ascending, alive as long as the histogram and its copies (they are constants).
  explicit Histogram(std::span<const double> bounds);

  void Observe(double value);

  std::span<const double> bounds() const { return bounds_; }
  // bounds().size() + 1 counts.
  std::span<const uint64_t> counts() const { return {counts_.data(), bounds_.size() + 1}; }
  uint64_t count() const { return count_; }
  double sum() const { return sum_; }

 private:
  std::span<const double> bounds_;
  std::array<uint64_t, kMaxBounds + 1> counts_{};
  uint64_t count_ = 0;
  double sum_ = 0.0;
};

// Borders of vLLM's histograms. Latencies are in seconds.
std::span<const double> FirstTokenBounds();
std::span<const double> TokenLatencyBounds();
std::span<const double> RequestLatencyBounds();
std::span<const double> IterationTokensBounds();
std::span<const double> ChoicesBounds();
std::span<const double> LengthBounds(int64_t max_model_len);  // 1, 2, 5, 10, ... <= max_model_len

struct EngineStats {
  EngineStats() : EngineStats(int64_t{1} << 20) {}
  explicit EngineStats(int64_t max_model_len);

  // Gauges.
  int64_t running = 0;    // sequences (choices) that hold pages
  int64_t waiting = 0;    // queued, pre-empted ones included
  double kv_usage = 0.0;  // 0..1, pages that running sequences hold
  int64_t kv_pages = 0;   // of the pool

  // Counters.
  int64_t prompt_tokens = 0;         // of prompts whose computation is complete
  int64_t prompt_tokens_cached = 0;  // of these, taken from the prefix cache
  int64_t generation_tokens = 0;
  int64_t preemptions = 0;
  int64_t prefix_queries = 0;                   // tokens looked up
  int64_t prefix_hits = 0;                      // tokens found
  int64_t requests_finished[4] = {0, 0, 0, 0};  // by FinishReason, one per choice
  int64_t steps = 0;

  // Histograms, each named like its metric without vLLM's prefix.
  Histogram time_to_first_token_seconds;            // submit -> first token
  Histogram inter_token_latency_seconds;            // between two tokens of one choice
  Histogram request_time_per_output_token_seconds;  // mean of a choice, without its first token
  Histogram e2e_request_latency_seconds;            // submit -> done
  Histogram request_queue_time_seconds;             // submit -> first planned
  Histogram request_inference_time_seconds;         // first planned -> last token
  Histogram request_prefill_time_seconds;           // first planned -> first token
  Histogram request_decode_time_seconds;            // first token -> last token
  Histogram request_prompt_tokens;
  Histogram request_generation_tokens;
  Histogram request_max_num_generation_tokens;  // of a request's choices
  Histogram request_params_max_tokens;
  Histogram request_prefill_kv_computed_tokens;  // prompt tokens not taken from the cache
  Histogram iteration_tokens_total;              // tokens of a step
  Histogram request_params_n;
};

}  // namespace nibble::engine
