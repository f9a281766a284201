// Random requests, a core to run them on, and comparisons of answers. For tests.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/core.h"
#include "engine/generate.h"

namespace nibble::engine {

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  // In [low, high].
  int32_t In(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(engine_() % static_cast<uint32_t>(high - low + 1));
  }
  bool OneIn(int32_t n) { return In(1, n) == 1; }

 private:
  std::mt19937 engine_;
};

struct RequestShape {
  int32_t vocab = 300;
  int32_t max_prompt = 70;
  int32_t max_output = 30;
  int32_t max_choices = 3;
  bool text = true;  // stop strings
};

// Prompts share prefixes, so that the cache has something to find; every sampling feature is used
// now and then.
inline Request RandomRequest(Random& random, const RequestShape& shape) {
  Request request;
  const int32_t family = random.In(0, 2);
  const int32_t length = random.In(1, shape.max_prompt);
  const int32_t common = random.In(0, length);
  for (int32_t i = 0; i < length; ++i)
    request.tokens.push_back(i < common ? (i * 7 + family * 31) % shape.vocab
                                        : random.In(0, shape.vocab - 1));
  if (random.OneIn(6)) request.cache_salt = "salt";
  SamplingParams& p = request.sampling;
  p.seed = static_cast<uint64_t>(random.In(0, 1 << 30));
  p.temperature = random.OneIn(2) ? 0.0f : 0.25f * static_cast<float>(random.In(1, 6));
  if (random.OneIn(3)) p.top_k = random.In(1, 40);
  if (random.OneIn(3)) p.top_p = 0.1f * static_cast<float>(random.In(1, 9));
  if (random.OneIn(4)) p.min_p = 0.05f * static_cast<float>(random.In(0, 9));
  if (random.OneIn(4)) p.repetition_penalty = 1.0f + 0.1f * static_cast<float>(random.In(-3, 5));
  if (random.OneIn(4)) p.presence_penalty = 0.5f * static_cast<float>(random.In(-4, 4));
  if (random.OneIn(4)) p.frequency_penalty = 0.5f * static_cast<float>(random.In(-4, 4));
  p.n = random.OneIn(4) ? random.In(1, shape.max_choices) : 1;
  p.max_tokens = random.OneIn(10) ? -1 : random.In(0, shape.max_output);
  if (random.OneIn(3) && p.max_tokens > 0)
    p.min_tokens = random.In(0, static_cast<int32_t>(p.max_tokens));
  p.ignore_eos = random.OneIn(4);
  if (random.OneIn(3)) p.stop_token_ids = {random.In(0, shape.vocab - 1), 'b'};
  if (random.OneIn(2)) p.logprobs = random.In(0, 5);
  if (random.OneIn(4)) p.prompt_logprobs = random.In(0, 4);
  if (shape.text && random.OneIn(2)) {
    // Mostly two letters, so that stop strings happen.
    for (const int32_t token : {'a', 'b'}) p.logit_bias.emplace_back(token, 9.0f);
    for (int32_t i = random.In(1, 3); i > 0; --i) {
      std::string stop;
      for (int32_t length = random.In(1, 4); length > 0; --length)
        stop += static_cast<char>('a' + random.In(0, 1));
      p.stop.push_back(stop);
    }
    p.include_stop_string = random.OneIn(2);
  }
  p.skip_special_tokens = !random.OneIn(4);
  p.hashes_logits = random.OneIn(2);
  return request;
}

// Checks the order of events: one Prompt first, then for each choice Deltas and one Done.
class CheckingSink : public CollectingSink {
 public:
  explicit CheckingSink(int32_t choices)
      : CollectingSink(choices), done_(static_cast<size_t>(choices), false) {}

  void Post(StreamEvent event) noexcept override {
    EXPECT_FALSE(failed_) << "an event after the error";
    switch (event.kind) {
      case StreamEvent::Kind::kPrompt:
        EXPECT_FALSE(prompt_) << "two prompt events";
        prompt_ = true;
        break;
      case StreamEvent::Kind::kDelta:
        EXPECT_TRUE(prompt_);
        EXPECT_FALSE(done_[event.delta.choice]) << "a delta after done";
        EXPECT_TRUE(event.delta.logprobs.empty() ||
                    event.delta.logprobs.size() == event.delta.tokens.size());
        break;
      case StreamEvent::Kind::kDone:
        EXPECT_TRUE(prompt_);
        EXPECT_FALSE(done_[event.done.choice]) << "done twice";
        done_[event.done.choice] = true;
        break;
      case StreamEvent::Kind::kError:
        failed_ = true;
        break;
    }
    ++events_;
    CollectingSink::Post(std::move(event));
  }

  int64_t events() const { return events_; }
  bool failed() const { return failed_; }

 private:
  std::vector<bool> done_;
  bool prompt_ = false;
  bool failed_ = false;
  int64_t events_ = 0;
};

// Runs requests on a core without threads.
struct CoreRunner {
  struct Config {
    int32_t page_size = 16;
    int64_t pages = 64;
    int64_t max_model_len = 200;
    int32_t max_sequences = 8;
    int32_t max_step_tokens = 64;
    bool prefix_cache = true;
    int64_t snapshots = 4;  // of recurrent states
    kernels::KvFormat kv_format = kernels::KvFormat::kBf16;
    std::vector<int32_t> eos;
    ThreadPool* pool = nullptr;
    std::optional<bool> launches_ahead = {};
    bool even_routing = false;
  };

  CoreRunner(models::Model& model, const text::Tokenizer* tokenizer, const Config& config)
      : max_model_len(config.max_model_len) {
    EngineOptions options;
    options.max_sequences = config.max_sequences;
    options.max_step_tokens = config.max_step_tokens;
    options.page_size = config.page_size;
    options.kv_format = config.kv_format;
    options.prefix_cache = config.prefix_cache;
    options.eos_token_ids = config.eos;
    options.pool = config.pool;
    options.even_routing = config.even_routing;
    MemoryPlan plan;
    plan.max_model_len = config.max_model_len;
    plan.kv_tokens = config.pages * config.page_size;
    plan.state_bytes = models::StateBytes(model.info());
    if (plan.state_bytes > 0) {
      plan.live_states = config.max_sequences;
      plan.snapshots = config.prefix_cache ? config.snapshots : 0;
    }
    const StepLimits limits = MakeStepLimits(options, config.max_model_len);
    NIBBLE_CHECK(model.Prepare(limits.max_step()));
    auto made = Core::Create({.model = &model,
                              .tokenizer = tokenizer,
                              .options = options,
                              .limits = limits,
                              .plan = plan,
                              .now = [this] { return now; },
                              .launches_ahead = config.launches_ahead});
    NIBBLE_CHECK(made, "{}", made.error().message());
    core = std::move(*made);
  }

  void Step() {
    core->Step();
    core->PostEvents();
  }

  std::shared_ptr<ActiveRequest> Add(Request request) {
    auto active = std::make_shared<ActiveRequest>();
    active->id = ++last_id;
    active->arrival = now;
    active->seed = request.sampling.seed.value_or(1);
    active->max_new_tokens = ResolveMaxTokens(request, max_model_len);
    active->request = std::move(request);
    core->Add(active);
    return active;
  }

  Clock::time_point now{};
  int64_t max_model_len;
  RequestId last_id = 0;
  std::unique_ptr<Core> core;
};

inline bool SameBits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

inline void ExpectSame(const TokenLogprob& got, const TokenLogprob& want, bool bits) {
  EXPECT_EQ(got.token, want.token);
  EXPECT_EQ(got.rank, want.rank);
  ASSERT_EQ(got.top.size(), want.top.size());
  const auto same = [&](float a, float b) {
    return bits ? SameBits(a, b) : std::abs(a - b) < 1e-4;
  };
  EXPECT_TRUE(same(got.logprob, want.logprob)) << got.logprob << " and " << want.logprob;
  for (size_t i = 0; i < got.top.size(); ++i) {
    EXPECT_EQ(got.top[i].first, want.top[i].first);
    EXPECT_TRUE(same(got.top[i].second, want.top[i].second));
  }
}

// Everything but the number of cached tokens. bits: log-probabilities to the last bit.
inline void ExpectSame(const Generation& got, const Generation& want, bool bits) {
  ASSERT_EQ(got.prompt.logprobs.size(), want.prompt.logprobs.size());
  for (size_t i = 0; i < got.prompt.logprobs.size(); ++i) {
    ASSERT_EQ(got.prompt.logprobs[i].has_value(), want.prompt.logprobs[i].has_value()) << i;
    if (got.prompt.logprobs[i]) ExpectSame(*got.prompt.logprobs[i], *want.prompt.logprobs[i], bits);
  }
  ASSERT_EQ(got.choices.size(), want.choices.size());
  for (size_t c = 0; c < got.choices.size(); ++c) {
    const GeneratedChoice& a = got.choices[c];
    const GeneratedChoice& b = want.choices[c];
    EXPECT_EQ(a.tokens, b.tokens) << "choice " << c;
    EXPECT_EQ(a.text, b.text) << "choice " << c;
    EXPECT_EQ(a.done.reason, b.done.reason);
    EXPECT_EQ(a.done.stop_string, b.done.stop_string);
    EXPECT_EQ(a.done.stop_token, b.done.stop_token);
    EXPECT_EQ(a.done.completion_tokens, b.done.completion_tokens);
    EXPECT_EQ(a.done.logits_hash, b.done.logits_hash) << "choice " << c;
    if (a.tokens.empty()) EXPECT_FALSE(a.done.logits_hash.has_value()) << "choice " << c;
    ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
    for (size_t i = 0; i < a.logprobs.size(); ++i) ExpectSame(a.logprobs[i], b.logprobs[i], bits);
  }
}

}  // namespace nibble::engine
