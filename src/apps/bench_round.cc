#include "apps/bench_round.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <latch>
#include <memory>
#include <optional>
#include <utility>

#include "apps/prompt_tokens.h"
#include "engine/generate.h"
#include "engine/logits_hash.h"

namespace nibble::apps {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Requests of one round, and when their tokens came.
class Requests {
 public:
  Requests(engine::Engine& engine, const BenchSampling& sampling, int32_t count, int64_t answer)
      : engine_(engine),
        sampling_(sampling),
        answer_(answer),
        seen_(std::make_shared<Seen>(count)) {}

  Status Submit(int32_t i, std::vector<int32_t> prompt, int64_t assumed_context) {
    seen_->times[i].reserve(static_cast<size_t>(answer_));
    engine::Request request{.id = fmt::format("bench-{}", i),
                            .tokens = std::move(prompt),
                            .assumed_context = assumed_context};
    if (assumed_context > 0) request.cache_salt = "assumed";  // nobody else finds these pages
    request.sampling.temperature = static_cast<float>(sampling_.temperature);
    request.sampling.top_p = static_cast<float>(sampling_.top_p);
    request.sampling.seed = i;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = answer_;
    request.sampling.hashes_logits = true;
    auto sink = std::make_shared<engine::CollectingSink>(
        1, [seen = seen_, i](const engine::DeltaEvent& delta) { seen->Note(i, delta); });
    request.sink = sink;
    sinks_.push_back(std::move(sink));
    NIBBLE_ASSIGN(engine::Ticket ticket, engine_.Reserve());
    NIBBLE_TRY(engine_.Submit(std::move(request), std::move(ticket)));
    return {};
  }

  // Every request has its first token; or one has failed, which Finish tells.
  void WaitForStart() {
    while (!seen_->started.try_wait() && !sinks_.back()->WaitFor(std::chrono::milliseconds(1))) {
    }
  }
  Result<std::vector<engine::Generation>> Finish() {
    std::vector<engine::Generation> answers;
    for (const auto& sink : sinks_) {
      NIBBLE_ASSIGN(engine::Generation answer, sink->Wait());
      answers.push_back(std::move(answer));
    }
    return answers;
  }
  // When the last one had its first token. After Finish, as what follows.
  Clock::time_point last_start() const {
    Clock::time_point last = seen_->times.front().front();
    for (const auto& times : seen_->times) last = std::max(last, times.front());
    return last;
  }
  const std::vector<Clock::time_point>& times(int32_t i) const { return seen_->times[i]; }

 private:
  // Written by the engine's thread, which may outlast a round that failed.
  struct Seen {
    explicit Seen(int32_t count) : times(static_cast<size_t>(count)), started(count) {}
    void Note(int32_t i, const engine::DeltaEvent& delta) {
      if (times[i].empty()) started.count_down();
      times[i].insert(times[i].end(), delta.tokens.size(), Clock::now());
    }

    std::vector<std::vector<Clock::time_point>> times;  // of each request's tokens
    std::latch started;
  };

  engine::Engine& engine_;
  const BenchSampling sampling_;
  const int64_t answer_;
  const std::shared_ptr<Seen> seen_;
  std::vector<std::shared_ptr<engine::CollectingSink>> sinks_;
};

// Tokens that count as computed, so that the next one is computed by itself: about the shape's.
int64_t AssumedTokens(const models::ModelInfo& info, const BenchShape& shape) {
  const bool chunks = std::ranges::any_of(info.state, &models::StateSpec::chunks);
  const int64_t unit = chunks ? kernels::kDeltaChunk : 1;
  return (shape.length() - 1 + unit / 2) / unit * unit;
}

uint32_t PromptSeed(uint32_t seed, int32_t i) { return seed * 7919u + static_cast<uint32_t>(i); }

}  // namespace

Result<PromptRound> RunPrompts(engine::Engine& engine, const BenchSampling& sampling,
                               const BenchShape& shape, int64_t answer, uint32_t seed) {
  const int32_t vocab = engine.tokenizer().vocab_size();
  Requests requests(engine, sampling, shape.batch, answer);
  const Clock::time_point begin = Clock::now();
  for (int32_t i = 0; i < shape.batch; ++i)
    NIBBLE_TRY(requests.Submit(i, PromptTokens(shape.length(), vocab, PromptSeed(seed, i)),
                               shape.context));
  NIBBLE_ASSIGN(const auto answers, requests.Finish());
  PromptRound round{.seconds = Seconds(begin, requests.last_start())};
  for (const engine::Generation& generation : answers) {
    const std::optional<uint64_t> hash = generation.choices.front().done.logits_hash;
    round.logits_hashes.push_back(hash ? engine::FormatLogitsHash(*hash) : "");
  }
  return round;
}

Result<DecodeRound> RunDecode(engine::Engine& engine, const BenchSampling& sampling,
                              const BenchShape& shape, int64_t answer, uint32_t seed) {
  const int32_t vocab = engine.tokenizer().vocab_size();
  constexpr int64_t kStarts = 8;  // more tokens, while the others start
  const int64_t assumed = AssumedTokens(engine.model_info(), shape);
  answer = std::min(answer + kStarts, engine.max_model_len() - assumed - 1);
  Requests requests(engine, sampling, shape.batch, answer);
  for (int32_t i = 0; i < shape.batch; ++i)
    NIBBLE_TRY(requests.Submit(i, PromptTokens(assumed + 1, vocab, PromptSeed(seed, i)), assumed));
  requests.WaitForStart();
  NIBBLE_TRY(requests.Finish());

  const std::vector<Clock::time_point>& first = requests.times(0);
  const auto from = std::ranges::lower_bound(first, requests.last_start());
  const auto steps = static_cast<int64_t>(first.end() - from) - 1;
  if (steps < 1)
    return Fail(Code::kInvalidArgument,
                "--decode {}: the first of {} answers ends before the last one begins; give more",
                answer, shape.batch);
  return DecodeRound{.step_seconds = Seconds(*from, first.back()) / static_cast<double>(steps)};
}

}  // namespace nibble::apps
