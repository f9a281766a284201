#include "engine/engine.h"

#include <gtest/gtest.h>

#include <sys/resource.h>

#include <atomic>
#include <semaphore>
#include <thread>
#include <vector>

#include "engine/generate.h"
#include "engine/testing/byte_tokenizer.h"
#include "engine/testing/fake_model.h"

namespace nibble::engine {
namespace {

using std::chrono::milliseconds;

struct MadeEngine {
  std::unique_ptr<Engine> engine;
  FakeModel* model = nullptr;  // owned by the engine: set hooks before the first request
};

MadeEngine Make(EngineOptions options = {}, FakeModel::Options fake = {}) {
  auto model = std::make_unique<FakeModel>(fake);
  FakeModel* raw = model.get();
  if (options.kv_bytes == 0) options.kv_bytes = 16 << 20;
  auto engine = Engine::Create(std::move(model), MakeByteTokenizer(), options);
  NIBBLE_CHECK(engine, "{}", engine.error().message());
  return {std::move(*engine), raw};
}

Request Simple(int64_t max_tokens, std::shared_ptr<EventSink> sink = nullptr) {
  Request request;
  request.tokens = {1, 2, 3};
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.sink = std::move(sink);
  return request;
}

TEST(Engine, AnswersFromManyThreads) {
  const MadeEngine made = Make();
  const Generation want = *Generate(*made.engine, Simple(20));
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        const auto got = Generate(*made.engine, Simple(20));
        if (got && got->choices[0].tokens == want.choices[0].tokens) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 40);
  EXPECT_EQ(made.engine->stats().generation_tokens, 41 * 20);
}

TEST(Engine, ReservationsAreBounded) {
  const MadeEngine made = Make({.max_sequences = 2, .max_queued = 1});
  std::vector<Ticket> tickets;
  for (int i = 0; i < 3; ++i) {
    auto ticket = made.engine->Reserve();
    ASSERT_TRUE(ticket);
    tickets.push_back(std::move(*ticket));
  }
  const auto full = made.engine->Reserve();
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code(), Code::kResourceExhausted);

  // With a ticket a request is never refused as full, and its end frees the place.
  const auto sink = std::make_shared<CollectingSink>(1);
  ASSERT_TRUE(made.engine->Submit(Simple(3, sink), std::move(tickets.back())));
  tickets.pop_back();
  ASSERT_TRUE(sink->Wait());
  EXPECT_TRUE(made.engine->Reserve());
  tickets.pop_back();  // unused: frees its place as well
  EXPECT_TRUE(made.engine->Reserve());
}

TEST(Engine, RefusesInvalidRequestsWithTheRange) {
  const MadeEngine made = Make({.max_model_len = 100});
  const auto refused = [&](auto change, const char* word) {
    Request request = Simple(3, std::make_shared<CollectingSink>(1));
    change(request);
    const auto id = made.engine->Submit(std::move(request), Ticket());
    ASSERT_FALSE(id) << word;
    EXPECT_EQ(id.error().code(), Code::kInvalidArgument);
    EXPECT_NE(id.error().message().find(word), std::string::npos) << id.error().message();
  };
  refused([](Request& r) { r.tokens.clear(); }, "prompt");
  refused([](Request& r) { r.tokens = {300}; }, "between 0 and 299");
  refused([](Request& r) { r.tokens = {-1}; }, "token id -1");
  refused([](Request& r) { r.tokens.assign(98, 1); }, "context of 100");
  refused([](Request& r) { r.sampling.max_tokens = INT64_MAX; }, "context of 100");
  refused([](Request& r) { r.sampling.max_tokens = -2; }, "max_tokens");
  refused([](Request& r) { r.sampling.temperature = NAN; }, "temperature");
  refused([](Request& r) { r.sampling.top_p = 0; }, "top_p");
  refused([](Request& r) { r.sampling.n = 0; }, "n 0");
  refused([](Request& r) { r.sampling.logprobs = 21; }, "--max-logprobs");
  refused([](Request& r) { r.sampling.stop = {""}; }, "stop");
  refused([](Request& r) { r.sampling.stop_token_ids = {1 << 30}; }, "stop_token_ids");
  refused([](Request& r) { r.sampling.logit_bias = {{5, INFINITY}}; }, "logit_bias");
  refused([](Request& r) { r.sampling.min_tokens = 4; }, "min_tokens");
  refused([](Request& r) { r.sink = nullptr; }, "sink");
  EXPECT_EQ(Generate(*made.engine, Simple(97))->choices[0].tokens.size(), 97u);
  EXPECT_EQ(Generate(*made.engine, Simple(-1))->choices[0].tokens.size(), 97u);
}

TEST(Engine, ScoresAPromptWithoutGenerating) {
  const MadeEngine made = Make();
  Request request = Simple(0);
  request.sampling.prompt_logprobs = 2;
  const auto got = Generate(*made.engine, std::move(request));
  ASSERT_TRUE(got);
  EXPECT_EQ(got->prompt.logprobs.size(), 3u);
  EXPECT_EQ(got->choices[0].done.reason, FinishReason::kLength);
  EXPECT_TRUE(got->choices[0].tokens.empty());
}

TEST(Engine, CancelStopsAtTheNextStep) {
  const MadeEngine made = Make();
  std::binary_semaphore stepping(0);
  std::binary_semaphore go_on(0);
  std::atomic<bool> block{true};
  made.model->before_forward = [&](const models::Batch&) {
    if (!block.exchange(false)) return;
    stepping.release();
    go_on.acquire();
  };
  const auto sink = std::make_shared<CollectingSink>(1);
  const auto id = made.engine->Submit(Simple(1000, sink), Ticket());
  ASSERT_TRUE(id);
  stepping.acquire();
  made.engine->Cancel(*id);
  made.engine->Cancel(*id);
  made.engine->Cancel(*id + 1000);
  go_on.release();
  EXPECT_TRUE(made.engine->Drain(milliseconds(10'000)));
  EXPECT_FALSE(sink->WaitFor(milliseconds(0))) << "no event after a cancel";
  EXPECT_EQ(made.engine->stats().requests_finished[static_cast<int>(FinishReason::kAbort)], 1);
}

TEST(Engine, DrainRefusesNewRequestsAndFinishesOldOnes) {
  const MadeEngine made = Make();
  auto ticket = made.engine->Reserve();
  ASSERT_TRUE(ticket);
  EXPECT_FALSE(made.engine->Drain(milliseconds(1))) << "a place is still taken";
  const auto refused = made.engine->Reserve();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kUnavailable);
  const auto sink = std::make_shared<CollectingSink>(1);
  ASSERT_TRUE(made.engine->Submit(Simple(10, sink), std::move(*ticket)));
  EXPECT_TRUE(made.engine->Drain(milliseconds(10'000)));
  EXPECT_TRUE(sink->Wait());
}

TEST(Engine, StoppingEndsRunningRequests) {
  MadeEngine made = Make({}, {.max_positions = 100'000});
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    sinks.push_back(std::make_shared<CollectingSink>(1));
    ASSERT_TRUE(made.engine->Submit(Simple(90'000, sinks.back()), Ticket()));
  }
  made.engine.reset();
  for (const auto& sink : sinks) {
    const auto result = sink->Wait();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), Code::kUnavailable);
  }
}

TEST(Engine, AnExceptionEndsEveryRequestAndTheEngineSaysSo) {
  const MadeEngine made = Make();
  std::atomic<int> steps{0};
  made.model->before_forward = [&](const models::Batch&) {
    if (++steps == 5) throw std::runtime_error("device lost");
  };
  const auto sink = std::make_shared<CollectingSink>(1);
  ASSERT_TRUE(made.engine->Health());
  ASSERT_TRUE(made.engine->Submit(Simple(100, sink), Ticket()));
  const auto result = sink->Wait();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code(), Code::kInternal);
  EXPECT_NE(result.error().message().find("device lost"), std::string::npos);
  ASSERT_FALSE(made.engine->Health());
  EXPECT_FALSE(made.engine->Reserve());
  const auto refused = made.engine->Submit(Simple(1, sink), Ticket());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kUnavailable);
}

TEST(Engine, DeadlineBeforeTheFirstToken) {
  const MadeEngine made = Make();
  Request request = Simple(10);
  request.deadline = std::chrono::steady_clock::now() - milliseconds(1);
  const auto result = Generate(*made.engine, std::move(request));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code(), Code::kDeadline);
}

// A sink may cancel in its destructor, which may run on the engine thread.
TEST(Engine, SinksMayCancelWhenTheyGo) {
  class CancellingSink : public EventSink {
   public:
    explicit CancellingSink(Engine& engine) : engine_(engine) {}
    ~CancellingSink() override { engine_.Cancel(id); }
    void Post(StreamEvent) noexcept override {}
    std::atomic<RequestId> id{0};

   private:
    Engine& engine_;
  };
  const MadeEngine made = Make();
  for (int i = 0; i < 20; ++i) {
    auto sink = std::make_shared<CancellingSink>(*made.engine);
    const auto id = made.engine->Submit(Simple(5, sink), Ticket());
    ASSERT_TRUE(id);
    sink->id = *id;
  }
  EXPECT_TRUE(made.engine->Drain(milliseconds(10'000)));
}

TEST(Engine, TicketsMayOutliveTheEngine) {
  MadeEngine made = Make();
  Ticket ticket = std::move(*made.engine->Reserve());
  made.engine.reset();
  EXPECT_TRUE(static_cast<bool>(ticket));
}

// Under the "no timing asserts" rule this checks CPU time, not the clock: an idle engine sleeps.
TEST(Engine, IdleBurnsNoCpu) {
  const MadeEngine made = Make();
  ASSERT_TRUE(Generate(*made.engine, Simple(3)));
  const auto cpu_us = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1'000'000 + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_usec;
  };
  const auto before = cpu_us();
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_LT(cpu_us() - before, 30'000);
}

TEST(Engine, PlanIsHeld) {
  const MadeEngine made = Make({.kv_bytes = 1 << 20});
  const MemoryPlan& plan = made.engine->memory_plan();
  EXPECT_LE(plan.kv_bytes, 1 << 20);
  EXPECT_GT(plan.kv_bytes, (1 << 20) - 4096);
  EXPECT_EQ(
      plan.kv_tokens * models::KvBytesPerToken(made.engine->model_info(), kernels::KvFormat::kBf16),
      plan.kv_bytes);
  EXPECT_LE(made.engine->max_model_len(), plan.kv_tokens);
}

TEST(Engine, WithoutATokenizerDeltasCarryIds) {
  EngineOptions options{.kv_bytes = 1 << 20};
  auto engine = Engine::Create(std::make_unique<FakeModel>(FakeModel::Options{}), nullptr, options);
  ASSERT_TRUE(engine) << engine.error().message();
  const auto got = Generate(**engine, Simple(4));
  ASSERT_TRUE(got);
  EXPECT_EQ(got->choices[0].tokens.size(), 4u);
  EXPECT_EQ(got->choices[0].text, "");
  Request request = Simple(4);
  request.sampling.stop = {"x"};
  EXPECT_FALSE(Generate(**engine, std::move(request)));
}

}  // namespace
}  // namespace nibble::engine
