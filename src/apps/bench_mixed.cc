#include "apps/bench_mixed.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "apps/prompt_tokens.h"
#include "engine/generate.h"

namespace nibble::apps {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kAnswerPrompt = 64;  // tokens
constexpr int64_t kBefore = 32;        // tokens of each answer before the prompt arrives

struct MixedRound {
  double quiet_gap = 0;       // seconds, the longest before the prompt arrived
  double largest_gap = 0;     // the longest since then, until the prompt's first token
  double prompt_seconds = 0;  // from its arrival to its first token
};

// When each token of an answer came.
class TimedAnswer {
 public:
  TimedAnswer(engine::Engine& engine, std::vector<int32_t> prompt, int64_t max_tokens)
      : sink_(std::make_shared<engine::CollectingSink>(
            1,
            [this](const engine::DeltaEvent& delta) {
              for (size_t i = 0; i < delta.tokens.size() && count_ < times_.size(); ++i) {
                times_[count_] = Clock::now();
                count_.fetch_add(1, std::memory_order_release);
              }
            })),
        times_(static_cast<size_t>(max_tokens)) {
    engine::Request request{.id = "bench", .tokens = std::move(prompt)};
    request.sampling = {.temperature = 0, .seed = 1, .max_tokens = max_tokens, .ignore_eos = true};
    request.sink = sink_;
    submitted_ = engine.Submit(std::move(request), engine::Ticket());
  }
  // So many tokens have come, or the answer has ended.
  void WaitForTokens(size_t n) {
    while (submitted_ && count_.load(std::memory_order_acquire) < n &&
           !sink_->WaitFor(std::chrono::milliseconds(1))) {
    }
  }
  Status Finish() {
    if (!submitted_) return tl::unexpected(submitted_.error());
    NIBBLE_TRY(sink_->Wait());
    return {};
  }
  size_t count() const { return count_.load(std::memory_order_acquire); }
  Clock::time_point time(size_t token) const { return times_[token]; }
  // The longest gap that ends in (from, to].
  double LargestGap(Clock::time_point from, Clock::time_point to) const {
    double largest = 0;
    for (size_t i = 1; i < count(); ++i) {
      if (times_[i] <= from || times_[i] > to) continue;
      largest = std::max(largest, std::chrono::duration<double>(times_[i] - times_[i - 1]).count());
    }
    return largest;
  }

 private:
  std::shared_ptr<engine::CollectingSink> sink_;
  Result<engine::RequestId> submitted_ = engine::RequestId{0};
  std::vector<Clock::time_point> times_;
  std::atomic<size_t> count_{0};
};

Result<MixedRound> RunRound(engine::Engine& engine, int64_t prompt, int32_t batch, uint32_t seed) {
  const int32_t vocab = engine.tokenizer().vocab_size();
  // As many tokens as the answers can need while the prompt is under way.
  const int64_t room = engine.max_model_len() - kAnswerPrompt;
  std::vector<std::unique_ptr<TimedAnswer>> answers;
  for (int32_t i = 0; i < batch; ++i) {
    answers.push_back(std::make_unique<TimedAnswer>(
        engine, PromptTokens(kAnswerPrompt, vocab, seed * 1000 + static_cast<uint32_t>(i)),
        std::min<int64_t>(room, 512)));
  }
  for (const auto& answer : answers) answer->WaitForTokens(kBefore);
  const Clock::time_point arrival = Clock::now();
  TimedAnswer prompted(engine, PromptTokens(prompt, vocab, seed * 1000 + 999), 2);
  NIBBLE_TRY(prompted.Finish());
  const Clock::time_point first_token = prompted.time(0);
  MixedRound round;
  round.prompt_seconds = std::chrono::duration<double>(first_token - arrival).count();
  for (const auto& answer : answers) NIBBLE_TRY(answer->Finish());
  for (const auto& answer : answers) {
    // The gap that the arrival falls into counts.
    const Clock::time_point settled = answer->time(kBefore / 2);
    round.quiet_gap = std::max(round.quiet_gap, answer->LargestGap(settled, arrival));
    round.largest_gap = std::max(
        round.largest_gap, answer->LargestGap(arrival, first_token + std::chrono::milliseconds(1)));
  }
  return round;
}

}  // namespace

Result<int> BenchMixed(const LoadedModel& loaded, const BenchModelOptions& options) {
  const int64_t prompt = options.prompts.front();
  const int32_t batch = options.batches.front();
  if (prompt + 2 > loaded.engine->max_model_len())
    return Fail(Code::kInvalidArgument, "--prompt {} exceeds the context of {}", prompt,
                loaded.engine->max_model_len());
  json::array rounds;
  for (int i = 0; i < options.repeat; ++i) {
    NIBBLE_ASSIGN(const MixedRound round,
                  RunRound(*loaded.engine, prompt, batch, static_cast<uint32_t>(i + 1)));
    rounds.push_back(json::object{{"largest_gap_ms", 1e3 * round.largest_gap},
                                  {"quiet_gap_ms", 1e3 * round.quiet_gap},
                                  {"prompt_seconds", round.prompt_seconds}});
    if (options.json) continue;
    // The first round starts with nothing known about how long steps take.
    fmt::print(
        "{}a prompt of {} tokens beside {} answers: longest gap between two tokens {:.1f} ms "
        "(before it {:.1f} ms); its first token after {:.2f} s\n",
        i == 0 ? "at first, " : "", prompt, batch, 1e3 * round.largest_gap, 1e3 * round.quiet_gap,
        round.prompt_seconds);
    std::fflush(stdout);
  }
  if (options.json)
    fmt::print("{}\n", json::serialize(json::object{{"model", options.model.model},
                                                    {"device", loaded.device},
                                                    {"prompt", prompt},
                                                    {"batch", batch},
                                                    {"rounds", std::move(rounds)}}));
  return 0;
}

}  // namespace nibble::apps
