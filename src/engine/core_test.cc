#include "engine/core.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "engine/testing/byte_tokenizer.h"
#include "engine/testing/fake_model.h"
#include "engine/testing/oracle.h"
#include "engine/testing/workload.h"

namespace nibble::engine {
namespace {

constexpr FakeModel::Options kFake{.favourite = kEos, .favour = 1.5f};

const text::Tokenizer* Bytes() {
  static const auto tokenizer = MakeByteTokenizer();
  return tokenizer.get();
}

Oracle MakeOracle(const FakeModel& model, int64_t max_model_len) {
  return Oracle({.logits = [&model](std::span<const int32_t> h) { return model.Logits(h); },
                 .max_model_len = max_model_len,
                 .tokenizer = Bytes(),
                 .eos = {kEos}});
}

std::vector<int32_t> Prompt(int32_t length, int32_t start = 0) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < length; ++i) tokens.push_back((start + i * 3) % 250);
  return tokens;
}

void RunToEnd(CoreRunner& runner) {
  for (int steps = 0; !runner.core->idle(); ++steps) {
    ASSERT_LT(steps, 20'000) << "no progress";
    runner.Step();
    ASSERT_EQ(runner.core->CheckInvariants(), "");
  }
  EXPECT_EQ(runner.core->cache().available(), runner.core->cache().pages()) << "pages leaked";
}

CoreRunner::Config RandomConfig(Random& random) {
  CoreRunner::Config config{.eos = {kEos}};
  config.page_size = random.OneIn(3) ? 32 : 16;
  config.max_model_len = random.In(170, 220);
  const int64_t least = (config.max_model_len + config.page_size - 1) / config.page_size;
  config.pages = least + random.In(0, random.OneIn(4) ? 60 : 3);
  config.max_sequences = random.OneIn(4) ? 64 : random.In(1, 8);
  config.max_step_tokens = random.OneIn(2) ? random.In(2, 12) : random.In(13, 200);
  config.prefix_cache = !random.OneIn(3);
  config.snapshots = random.In(0, 6);
  config.kv_format = random.OneIn(2) ? kernels::KvFormat::kBf16 : kernels::KvFormat::kFp8;
  return config;
}

// Steps read at once, and steps launched before the one before them is read.
class CoreProperty : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(Steps, CoreProperty, ::testing::Bool(), [](const auto& info) {
  return info.param ? "LaunchedAhead" : "ReadAtOnce";
});

// EXACT, HELD, ONE-WRITER, ENDS-ONCE, under pre-emption, sharing, cancellation and every page and
// chunk size: each request that was not cancelled gets what the oracle gets for it alone.
TEST_P(CoreProperty, RandomWorkloadsEqualTheOracle) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr uint32_t kSeeds = 40;  // fifteen times slower
#else
  constexpr uint32_t kSeeds = 200;
#endif
  int64_t preemptions = 0;
  int64_t hits = 0;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Random random(seed);
    // Every other model never ends by itself: long answers on few pages pre-empt each other.
    FakeModel::Options fake = random.OneIn(2) ? kFake : FakeModel::Options{};
    fake.recurrent = random.OneIn(2);
    if (random.OneIn(3)) fake.rope_border = random.In(5, 120);
    FakeModel model(fake);
    CoreRunner::Config config = RandomConfig(random);
    config.launches_ahead = GetParam();
    CoreRunner runner(model, Bytes(), config);
    const Oracle oracle = MakeOracle(model, config.max_model_len);

    RequestShape shape;
    if (random.OneIn(2)) shape.max_output = 100;
    if (random.OneIn(2)) shape.max_prompt = 20;
    struct Running {
      Request request;
      std::shared_ptr<CheckingSink> sink;
      std::shared_ptr<ActiveRequest> active;
      int64_t events_at_cancel = -1;
    };
    std::vector<Running> all;
    const int32_t wanted = random.In(1, 24);
    for (int steps = 0; static_cast<int32_t>(all.size()) < wanted || !runner.core->idle();
         ++steps) {
      ASSERT_LT(steps, 20'000) << "no progress";
      while (static_cast<int32_t>(all.size()) < wanted && random.OneIn(2)) {
        Running added{.request = RandomRequest(random, shape)};
        added.sink = std::make_shared<CheckingSink>(added.request.sampling.n);
        added.request.sink = added.sink;
        ASSERT_TRUE(CheckRequest(added.request, {.vocab_size = 300, .max_model_len = 170}))
            << "the generator made an invalid request";
        added.active = runner.Add(added.request);
        all.push_back(std::move(added));
      }
      if (random.OneIn(40) && !all.empty()) {
        Running& victim = all[random.In(0, static_cast<int32_t>(all.size()) - 1)];
        if (!victim.active->ended && !victim.active->cancelled) {
          victim.active->cancelled = true;
          victim.events_at_cancel = victim.sink->events();
        }
      }
      runner.Step();
      ASSERT_EQ(runner.core->CheckInvariants(), "");
    }
    EXPECT_EQ(runner.core->cache().available(), runner.core->cache().pages()) << "pages leaked";
    for (const Running& running : all) {
      EXPECT_TRUE(running.active->ended);
      EXPECT_EQ(running.active->request.id, "");
      if (running.events_at_cancel >= 0) {
        EXPECT_EQ(running.sink->events(), running.events_at_cancel) << "events after a cancel";
        continue;
      }
      const auto got = running.sink->Wait();
      ASSERT_TRUE(got) << got.error().message();
      ExpectSame(*got, oracle.Run(running.request), false);
      if (::testing::Test::HasFailure()) return;
    }
    preemptions += runner.core->stats().preemptions;
    hits += runner.core->stats().prefix_hits;
  }
  EXPECT_GT(preemptions, kSeeds / 40) << "the workloads should exercise pre-emption";
  EXPECT_GT(hits, 5 * kSeeds) << "and the prefix cache";
}

// EXACT to the last bit: alone on a roomy engine, and among 63 others on a small one.
TEST_P(CoreProperty, AloneEqualsAmongOthersBitForBit) {
  Random random(99);
  std::vector<Request> requests;
  for (int i = 0; i < 64; ++i) requests.push_back(RandomRequest(random, {.max_output = 90}));

  FakeModel crowded_model(kFake);
  CoreRunner crowded(crowded_model, Bytes(),
                     {.pages = 14,
                      .max_sequences = 64,
                      .max_step_tokens = 80,
                      .eos = {kEos},
                      .launches_ahead = GetParam()});
  std::vector<std::shared_ptr<CheckingSink>> sinks;
  for (Request request : requests) {
    request.sink = sinks.emplace_back(std::make_shared<CheckingSink>(request.sampling.n));
    crowded.Add(std::move(request));
  }
  RunToEnd(crowded);
  EXPECT_GT(crowded.core->stats().preemptions, 0) << "the test should exercise pre-emption";
  EXPECT_GT(crowded.core->stats().prefix_hits, 0);

  for (size_t i = 0; i < requests.size(); ++i) {
    FakeModel model(kFake);
    CoreRunner alone(
        model, Bytes(),
        {.page_size = 64, .max_step_tokens = 300, .prefix_cache = false, .eos = {kEos}});
    Request request = requests[i];
    const auto sink = std::make_shared<CheckingSink>(request.sampling.n);
    request.sink = sink;
    alone.Add(std::move(request));
    RunToEnd(alone);
    ExpectSame(*sinks[i]->Wait(), *sink->Wait(), true);
  }
}

// Rows that are no logits end their request, with all its choices, and no other: not those beside
// them in a step, nor those that get their pages.
TEST_P(CoreProperty, BrokenLogitsEndTheirRequestAlone) {
  constexpr int32_t kBreaking = 290;
  FakeModel::Options fake = kFake;
  fake.breaking_token = kBreaking;
  FakeModel model(fake), healthy(kFake);
  const CoreRunner::Config config = {
      .pages = 20, .max_sequences = 12, .eos = {kEos}, .launches_ahead = GetParam()};
  CoreRunner runner(model, Bytes(), config), without(healthy, Bytes(), config);
  Random random(31);
  std::vector<std::shared_ptr<CheckingSink>> sinks, want;
  for (int i = 0; i < 60; ++i) {
    Request request = RandomRequest(random, {.vocab = kBreaking, .max_output = 40});
    request.sampling.logit_bias.emplace_back(kBreaking, -1e30f);
    if (i % 3 != 2) {
      request.sink = want.emplace_back(std::make_shared<CheckingSink>(request.sampling.n));
      without.Add(request);
    } else {
      want.emplace_back();
      request.tokens[random.In(0, static_cast<int32_t>(request.tokens.size()) - 1)] = kBreaking;
      if (request.sampling.max_tokens == 0) request.sampling.max_tokens = 1;
    }
    request.sink = sinks.emplace_back(std::make_shared<CheckingSink>(request.sampling.n));
    runner.Add(std::move(request));
  }
  RunToEnd(runner);
  RunToEnd(without);
  for (size_t i = 0; i < sinks.size(); ++i) {
    const auto got = sinks[i]->Wait();
    if (want[i] != nullptr) {
      ASSERT_TRUE(got) << got.error().message();
      ExpectSame(*got, *want[i]->Wait(), true);
    } else {
      ASSERT_FALSE(got);
      EXPECT_EQ(got.error().code(), Code::kCorruption);
      EXPECT_EQ(got.error().message().find("FakeForCausalLM: logits at position "), 0u);
    }
  }
  EXPECT_GE(runner.core->stats().requests_finished[static_cast<int>(FinishReason::kError)], 20);
}

// ONE-FORM: the same of a model that computes prompts in chunks, whose logits show the form of
// every token before.
TEST(CoreProperty, FormsOfTokensDoNotDependOnOthers) {
  constexpr FakeModel::Options kChunks{.recurrent = true, .chunks = true};  // long answers
  Random random(7);
  std::vector<Request> requests;
  for (int i = 0; i < 64; ++i)
    requests.push_back(RandomRequest(random, {.max_prompt = 230, .max_output = 90}));
  constexpr int64_t kLength = 330;

  std::vector<Generation> want;
  for (const Request& given : requests) {
    FakeModel model(kChunks);
    CoreRunner alone(model, Bytes(),
                     {.page_size = 64,
                      .max_model_len = kLength,
                      .max_step_tokens = 300,
                      .prefix_cache = false,
                      .eos = {kEos}});
    Request request = given;
    const auto sink = std::make_shared<CheckingSink>(request.sampling.n);
    request.sink = sink;
    alone.Add(std::move(request));
    RunToEnd(alone);
    want.push_back(*sink->Wait());
  }
  const CoreRunner::Config configs[] = {
      {.page_size = 16, .pages = 30, .max_sequences = 64, .max_step_tokens = 90, .snapshots = 8},
      {.page_size = 32, .pages = 14, .max_sequences = 8, .max_step_tokens = 65, .snapshots = 3},
      {.page_size = 128, .pages = 4, .max_sequences = 5, .max_step_tokens = 200, .snapshots = 5},
      {.page_size = 16, .pages = 24, .max_step_tokens = 70, .prefix_cache = false},
  };
  int64_t preemptions = 0;
  for (CoreRunner::Config config : configs) {
    SCOPED_TRACE(fmt::format("pages of {}", config.page_size));
    config.max_model_len = kLength;
    config.eos = {kEos};
    FakeModel model(kChunks);
    CoreRunner crowded(model, Bytes(), config);
    std::vector<std::shared_ptr<CheckingSink>> sinks;
    for (Request request : requests) {
      request.sink = sinks.emplace_back(std::make_shared<CheckingSink>(request.sampling.n));
      crowded.Add(std::move(request));
    }
    RunToEnd(crowded);
    preemptions += crowded.core->stats().preemptions;
    if (config.prefix_cache) {
      EXPECT_GT(crowded.core->stats().prefix_hits, 0);
    }
    for (size_t i = 0; i < requests.size(); ++i) ExpectSame(*sinks[i]->Wait(), want[i], true);
  }
  EXPECT_GT(preemptions, 3) << "the test should exercise pre-emption";
}

std::shared_ptr<CheckingSink> AddGreedy(CoreRunner& runner, std::vector<int32_t> tokens,
                                        int64_t max_tokens, int32_t n = 1) {
  Request request;
  request.tokens = std::move(tokens);
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.sampling.n = n;
  const auto sink = std::make_shared<CheckingSink>(n);
  request.sink = sink;
  runner.Add(std::move(request));
  return sink;
}

TEST(Core, SecondTimeComesFromTheCache) {
  FakeModel model(kFake);
  CoreRunner runner(model, Bytes(), {});
  const auto first = AddGreedy(runner, Prompt(50), 4);
  RunToEnd(runner);
  const auto second = AddGreedy(runner, Prompt(50), 4);
  RunToEnd(runner);
  const Generation a = *first->Wait();
  const Generation b = *second->Wait();
  EXPECT_EQ(a.prompt.cached_tokens, 0);
  EXPECT_EQ(b.prompt.cached_tokens, 48);
  EXPECT_EQ(a.choices[0].tokens, b.choices[0].tokens);
  EXPECT_EQ(runner.core->stats().prefix_queries, 100);
  EXPECT_EQ(runner.core->stats().prefix_hits, 48);
}

// With recurrent layers a prefix is reused up to where its state was kept: the last page border of
// a prompt, where a third prompt leaves the common part, and the end of what was generated.
TEST(Core, RecurrentStatesAreReusedAtPageBorders) {
  FakeModel model({.recurrent = true});
  CoreRunner runner(model, Bytes(), {.snapshots = 8});
  const auto cached = [&](std::vector<int32_t> prompt) {
    const auto sink = AddGreedy(runner, std::move(prompt), 30);
    RunToEnd(runner);
    const Generation got = *sink->Wait();
    EXPECT_EQ(got.choices[0].tokens.size(), 30u);
    return std::pair(got.prompt.cached_tokens, got.choices[0].tokens);
  };
  std::vector<int32_t> system = Prompt(40);
  const auto with = [&](int32_t start) {
    std::vector<int32_t> prompt = system;
    for (int32_t i = 0; i < 25; ++i) prompt.push_back((start + i * 5) % 250);
    return prompt;
  };
  const auto [first, answer] = cached(with(1));
  EXPECT_EQ(first, 0);
  EXPECT_EQ(cached(with(1)).first, 64) << "the whole prompt but its last token";
  EXPECT_EQ(cached(with(2)).first, 0) << "nobody had stopped where they part";
  EXPECT_EQ(cached(with(3)).first, 32) << "now somebody has";
  std::vector<int32_t> second_turn = with(1);
  second_turn.insert(second_turn.end(), answer.begin(), answer.end());
  second_turn.push_back(7);
  EXPECT_EQ(cached(second_turn).first, 80) << "the last page border of 94 tokens";
}

// Where prompts are computed in chunks, only whole chunks of prompts are reused.
TEST(Core, ChunkedStatesAreReusedAtChunkBorders) {
  FakeModel model({.recurrent = true, .chunks = true});
  CoreRunner runner(model, Bytes(), {.max_step_tokens = 80, .snapshots = 8});
  const auto cached = [&](std::vector<int32_t> prompt) {
    const auto sink = AddGreedy(runner, std::move(prompt), 30);
    RunToEnd(runner);
    return sink->Wait()->prompt.cached_tokens;
  };
  EXPECT_EQ(cached(Prompt(90)), 0);
  EXPECT_EQ(cached(Prompt(90)), 64) << "the last chunk border";
  EXPECT_EQ(cached(Prompt(150)), 64) << "its tail was computed in another form";
  EXPECT_EQ(cached(Prompt(150)), 128);
  EXPECT_EQ(cached(Prompt(128)), 64) << "a token is left to compute";
  EXPECT_EQ(cached(Prompt(63)), 0) << "it has no whole chunk";
}

TEST(Core, AChunkMustFitAStep) {
  FakeModel model({.recurrent = true, .chunks = true});
  EngineOptions options;
  options.max_step_tokens = 64;
  const auto core = Core::Create({.model = &model,
                                  .options = options,
                                  .limits = MakeStepLimits(options, 200),
                                  .plan = {.max_model_len = 200}});
  ASSERT_FALSE(core);
  EXPECT_NE(core.error().message().find("at least 65"), std::string::npos);
}

TEST(Core, ASequenceThatCrossesTheRopeBorderIsComputedAnew) {
  FakeModel model({.rope_border = 40});
  CoreRunner runner(model, Bytes(), {});
  int64_t computed = 0;
  model.before_forward = [&](const models::Batch& batch) {
    computed += static_cast<int64_t>(batch.tokens.size());
  };
  const auto sink = AddGreedy(runner, Prompt(38), 10);
  RunToEnd(runner);
  EXPECT_EQ(sink->Wait()->choices[0].tokens.size(), 10u);
  // 40 tokens at first (the 41st is drawn from them), then 47 anew.
  EXPECT_EQ(computed, 40 + 47);
  computed = 0;
  EXPECT_EQ(AddGreedy(runner, Prompt(38), 1)->events(), 0);
  RunToEnd(runner);
  EXPECT_EQ(computed, 38 - 32) << "a short prompt finds the pages of short ones";
}

// A prompt that is cached wholly still computes its last token: its logits are wanted.
TEST(Core, WholePagesRecomputeTheLast) {
  FakeModel model(kFake);
  CoreRunner runner(model, Bytes(), {});
  AddGreedy(runner, Prompt(48), 4);
  RunToEnd(runner);
  const auto second = AddGreedy(runner, Prompt(48), 4);
  RunToEnd(runner);
  EXPECT_EQ(second->Wait()->prompt.cached_tokens, 32);
}

// The answer is cached too, so that the next turn of a chat finds it.
TEST(Core, OutputsAreCached) {
  FakeModel model(kFake);
  CoreRunner runner(model, Bytes(), {});
  const auto first = AddGreedy(runner, Prompt(20), 30);
  RunToEnd(runner);
  std::vector<int32_t> next = Prompt(20);
  const Generation answer = *first->Wait();
  for (const int32_t token : answer.choices[0].tokens) next.push_back(token);
  const auto second = AddGreedy(runner, next, 1);
  RunToEnd(runner);
  EXPECT_EQ(second->Wait()->prompt.cached_tokens, 48);  // of 50; the last token was never an input
}

// A step that is launched ahead runs on what the device drew, and no longer than it must: the steps
// that are known to be the last ones are followed by none.
TEST(Core, LaunchedAheadComputesNothingBehindMaxTokens) {
  FakeModel model({});
  CoreRunner runner(model, Bytes(), {.launches_ahead = true});
  int64_t computed = 0, unseen = 0;
  model.before_forward = [&](const models::Batch& batch) {
    computed += static_cast<int64_t>(batch.tokens.size());
    unseen += std::ranges::count_if(batch.tokens, [](int32_t token) { return token < 0; });
  };
  const auto sinks = {AddGreedy(runner, Prompt(20), 10), AddGreedy(runner, Prompt(30, 9), 5)};
  RunToEnd(runner);
  for (const auto& sink : sinks) EXPECT_TRUE(sink->Wait());
  EXPECT_EQ(computed, 20 + 9 + 30 + 4);
  EXPECT_EQ(unseen, 9 + 4) << "no step should wait for the host";
}

// An end that only the token shows costs one step, whose result nobody sees.
TEST(Core, LaunchedAheadDropsWhatFollowsAStop) {
  FakeModel model({.favourite = kEos, .favour = 50.0f});
  CoreRunner runner(model, Bytes(), {.eos = {kEos}, .launches_ahead = true});
  int steps = 0;
  model.before_forward = [&](const models::Batch&) { ++steps; };
  Request request;
  request.tokens = Prompt(20);
  request.sampling = {.temperature = 0.0f, .max_tokens = 50};
  const auto sink = std::make_shared<CheckingSink>(1);
  request.sink = sink;
  runner.Add(std::move(request));
  RunToEnd(runner);
  const Generation got = *sink->Wait();
  EXPECT_EQ(got.choices[0].tokens, std::vector<int32_t>{kEos});
  EXPECT_EQ(got.choices[0].done.completion_tokens, 1);
  EXPECT_EQ(steps, 2);
  EXPECT_EQ(runner.core->stats().generation_tokens, 1);
}

// Logits on the host are those of the step that they belong to.
TEST(Core, FailAllForgetsWhatIsUnderWay) {
  FakeModel model(kFake);
  CoreRunner runner(model, Bytes(), {.launches_ahead = true});
  std::weak_ptr<CheckingSink> watched;
  {
    Request request{.tokens = Prompt(20)};
    request.sampling.seed = 1;
    auto sink = std::make_shared<CheckingSink>(1);
    watched = sink;
    request.sink = std::move(sink);
    runner.Add(std::move(request));
  }
  for (int step = 0; step < 3; ++step) runner.Step();
  EXPECT_FALSE(watched.expired());
  runner.core->FailAll(Error(Code::kInternal, "the device is gone"));
  runner.core->PostEvents();
  EXPECT_TRUE(watched.expired()) << "sinks go with their requests";
  EXPECT_TRUE(runner.core->idle());
  EXPECT_EQ(runner.core->CheckInvariants(), "");
}

TEST(Core, LaunchedAheadHandsOutPromptLogitsInOrder) {
  FakeModel model({});
  CoreRunner runner(model, Bytes(), {.max_step_tokens = 16, .launches_ahead = true});
  const std::vector<int32_t> prompt = Prompt(60);
  Request request;
  request.tokens = prompt;
  request.sampling = {.temperature = 0.0f, .max_tokens = 5, .ignore_eos = true};
  request.sampling.prompt_logprobs = 0;
  int64_t next = 0;
  request.on_prompt_logits = [&](int64_t position, std::span<const float> logits) {
    EXPECT_EQ(position, next++);
    const std::vector<float> want = model.Logits(std::span(prompt).first(position + 1));
    EXPECT_TRUE(std::ranges::equal(logits, want)) << position;
  };
  request.sink = std::make_shared<CheckingSink>(1);
  runner.Add(std::move(request));
  AddGreedy(runner, Prompt(20), 30);
  RunToEnd(runner);
  EXPECT_EQ(next, 59);
}

TEST(Core, SaltsShareNothing) {
  FakeModel model(kFake);
  CoreRunner runner(model, Bytes(), {});
  for (const char* salt : {"a", "b", ""}) {
    Request request;
    request.tokens = Prompt(40);
    request.cache_salt = salt;
    request.sampling.max_tokens = 1;
    const auto sink = std::make_shared<CheckingSink>(1);
    request.sink = sink;
    runner.Add(std::move(request));
    RunToEnd(runner);
    EXPECT_EQ(sink->Wait()->prompt.cached_tokens, 0) << salt;
  }
}

// Prompt log-probabilities need every position's logits, cached or not.
TEST(Core, PromptLogprobsAreRightOnACachedPrompt) {
  FakeModel model(kFake);
  CoreRunner runner(model, Bytes(), {.max_step_tokens = 16, .eos = {kEos}});
  AddGreedy(runner, Prompt(60), 4);
  RunToEnd(runner);
  Request request;
  request.tokens = Prompt(60);
  request.sampling = {.temperature = 0.0f, .seed = 1, .max_tokens = 0, .prompt_logprobs = 3};
  const auto sink = std::make_shared<CheckingSink>(1);
  request.sink = sink;
  runner.Add(request);
  RunToEnd(runner);
  const Generation got = *sink->Wait();
  EXPECT_EQ(got.prompt.cached_tokens, 0);
  ASSERT_EQ(got.prompt.logprobs.size(), 60u);
  ExpectSame(got, MakeOracle(model, 200).Run(request), false);
}

TEST(Core, ChoicesShareThePromptsPages) {
  for (const bool prefix_cache : {true, false}) {
    FakeModel model(kFake);
    // Three choices of 6 pages each fit only if they share the prompt's 5 full pages.
    CoreRunner runner(model, Bytes(),
                      {.pages = 11, .max_model_len = 100, .prefix_cache = prefix_cache});
    int64_t most = 0;
    int64_t computed = 0;
    model.before_forward = [&](const models::Batch& batch) {
      most = std::max(most, static_cast<int64_t>(batch.kv_len.size()));
      computed += static_cast<int64_t>(batch.tokens.size());
    };
    const auto sink = AddGreedy(runner, Prompt(85), 8, 3);
    RunToEnd(runner);
    EXPECT_TRUE(sink->Wait());
    EXPECT_EQ(most, 3) << "they should run together";
    EXPECT_EQ(computed, 85 + 2 * 5 + 3 * 7);
    EXPECT_EQ(runner.core->stats().preemptions, 0);
  }
}

TEST(Core, DeadlineEndsQueuedAndRunningRequests) {
  FakeModel model(kFake);
  CoreRunner runner(model, Bytes(), {.max_sequences = 1});
  std::vector<std::shared_ptr<CheckingSink>> sinks;
  for (int i = 0; i < 2; ++i) {
    Request request;
    request.tokens = Prompt(10);
    request.sampling.max_tokens = 100;
    request.sampling.ignore_eos = true;
    request.deadline = runner.now + std::chrono::seconds(5);
    request.sink = sinks.emplace_back(std::make_shared<CheckingSink>(1));
    runner.Add(std::move(request));
  }
  for (int i = 0; i < 5; ++i) runner.Step();
  EXPECT_GT(sinks[0]->events(), 0);
  EXPECT_EQ(sinks[1]->events(), 0);
  runner.now += std::chrono::seconds(5);
  RunToEnd(runner);
  for (const auto& sink : sinks) {
    const auto result = sink->Wait();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), Code::kDeadline);
  }
  EXPECT_NE(sinks[1]->Wait().error().message().find("queued"), std::string::npos);
  EXPECT_EQ(runner.core->stats().requests_finished[static_cast<int>(FinishReason::kError)], 2);
}

// The latest arrival yields, comes back, and nobody notices.
TEST(Core, PreemptionKeepsTheAnswer) {
  FakeModel model(kFake);
  CoreRunner runner(model, Bytes(), {.pages = 13, .max_sequences = 4, .prefix_cache = false});
  std::vector<std::shared_ptr<CheckingSink>> sinks;
  for (int i = 0; i < 4; ++i) sinks.push_back(AddGreedy(runner, Prompt(30, i), 100));
  RunToEnd(runner);
  EXPECT_GT(runner.core->stats().preemptions, 0);
  for (int i = 0; i < 4; ++i) {
    FakeModel lonely(kFake);
    CoreRunner alone(lonely, Bytes(), {});
    const auto sink = AddGreedy(alone, Prompt(30, i), 100);
    RunToEnd(alone);
    EXPECT_EQ(sinks[i]->Wait()->choices[0].tokens, sink->Wait()->choices[0].tokens);
  }
}

// llama-server loses text that was held back for a possible stop string.
TEST(Core, TextHeldForAStopComesOutAtMaxTokens) {
  FakeModel model({.favourite = 'x', .favour = 50.0f});
  CoreRunner runner(model, Bytes(), {});
  Request request;
  request.tokens = Prompt(3);
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = 5;
  request.sampling.stop = {"xxxxxxx"};
  const auto sink = std::make_shared<CheckingSink>(1);
  request.sink = sink;
  runner.Add(std::move(request));
  RunToEnd(runner);
  const Generation got = *sink->Wait();
  EXPECT_EQ(got.choices[0].text, "xxxxx");
  EXPECT_EQ(got.choices[0].done.reason, FinishReason::kLength);
  EXPECT_EQ(sink->events(), 3) << "prompt, one delta, done";
}

TEST(Core, StatisticsAddUp) {
  FakeModel model(kFake);
  CoreRunner runner(model, Bytes(), {});
  AddGreedy(runner, Prompt(40), 10);
  AddGreedy(runner, Prompt(40), 1, 2);
  runner.Step();
  EXPECT_GT(runner.core->stats().running, 0);
  EXPECT_GT(runner.core->stats().kv_usage, 0.0);
  RunToEnd(runner);
  const EngineStats& stats = runner.core->stats();
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.waiting, 0);
  EXPECT_EQ(stats.kv_usage, 0.0);
  EXPECT_EQ(stats.prompt_tokens, 80);
  EXPECT_EQ(stats.generation_tokens, 12);
  EXPECT_EQ(stats.requests_finished[static_cast<int>(FinishReason::kLength)], 3);
  EXPECT_EQ(stats.time_to_first_token_seconds.count(), 3u);
  EXPECT_EQ(stats.inter_token_latency_seconds.count(), 9u);
  EXPECT_EQ(stats.request_generation_tokens.sum(), 12.0);
  EXPECT_EQ(stats.request_params_n.count(), 2u);
}

}  // namespace
}  // namespace nibble::engine
