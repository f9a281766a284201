#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace nibble::engine {
namespace {

SchedulerView View(int64_t budget, int64_t pages) {
  return {.max_step_tokens = budget,
          .max_prompt_tokens = budget,
          .max_running = 64,
          .max_prompt_rows = 64,
          .available_pages = pages};
}

std::map<int32_t, int32_t> Tokens(const StepPlan& plan) {
  std::map<int32_t, int32_t> tokens;
  for (const Chunk& chunk : plan.chunks) tokens[chunk.index] = chunk.tokens;
  return tokens;
}

TEST(Scheduler, DecodeFirst) {
  Scheduler scheduler;
  SchedulerView view = View(64, 100);
  view.running = {
      {.order = 0, .remaining = 1000}, {.order = 1, .remaining = 1}, {.order = 2, .remaining = 1}};
  const auto tokens = Tokens(scheduler.Plan(view));
  EXPECT_EQ(tokens, (std::map<int32_t, int32_t>{{0, 62}, {1, 1}, {2, 1}}));
}

TEST(Scheduler, PromptsTakeLessBesideAnswers) {
  Scheduler scheduler;
  SchedulerView view = View(64, 100);
  view.max_prompt_tokens = 20;
  view.running = {{.order = 0, .remaining = 1000}, {.order = 1, .remaining = 1}};
  EXPECT_EQ(Tokens(scheduler.Plan(view)), (std::map<int32_t, int32_t>{{0, 20}, {1, 1}}));
  view.running.pop_back();
  EXPECT_EQ(Tokens(scheduler.Plan(view)), (std::map<int32_t, int32_t>{{0, 64}}));
}

TEST(Scheduler, WhoHasNothingToDoIsLeftAlone) {
  Scheduler scheduler;
  SchedulerView view = View(64, 0);
  view.running = {{.order = 0, .remaining = 0}, {.order = 1, .remaining = 1}};
  EXPECT_EQ(Tokens(scheduler.Plan(view)), (std::map<int32_t, int32_t>{{1, 1}}));
  view.running.pop_back();
  const StepPlan& plan = scheduler.Plan(view);
  EXPECT_EQ(plan.action, StepPlan::Action::kRun);
  EXPECT_TRUE(plan.chunks.empty());
}

TEST(Scheduler, DecodesTakeTurnsWhenTheBudgetIsSmall) {
  Scheduler scheduler;
  SchedulerView view = View(4, 100);
  for (uint64_t i = 0; i < 10; ++i) view.running.push_back({.order = i, .remaining = 1});
  std::vector<int> runs(10, 0);
  for (uint64_t step = 1; step <= 10; ++step) {
    const StepPlan& plan = scheduler.Plan(view);
    EXPECT_EQ(plan.chunks.size(), 4u);
    for (const Chunk& chunk : plan.chunks) {
      ++runs[chunk.index];
      view.running[chunk.index].last_step = step;
    }
  }
  for (const int count : runs) EXPECT_NEAR(count, 4, 1);
}

TEST(Scheduler, ShortPromptsPassALongOneThatKeepsHalf) {
  Scheduler scheduler;
  SchedulerView view = View(512, 100);
  view.running = {{.order = 0, .remaining = 100'000},
                  {.order = 1, .remaining = 100},
                  {.order = 2, .remaining = 50'000}};
  const auto tokens = Tokens(scheduler.Plan(view));
  EXPECT_EQ(tokens, (std::map<int32_t, int32_t>{{0, 256}, {1, 100}, {2, 156}}));
}

TEST(Scheduler, LatestYieldsWhenNoPageIsLeft) {
  Scheduler scheduler;
  SchedulerView view = View(64, 1);
  view.running = {{.order = 5, .remaining = 1, .needs_page = true},
                  {.order = 9, .remaining = 40},
                  {.order = 7, .remaining = 1, .needs_page = true}};
  const StepPlan& plan = scheduler.Plan(view);
  EXPECT_EQ(plan.action, StepPlan::Action::kPreempt);
  EXPECT_EQ(plan.victim, 1);
  view.available_pages = 0;
  view.running[0] = {.order = 5, .remaining = 0};
  EXPECT_EQ(scheduler.Plan(view).victim, 0) << "it waits for its end: nothing is lost";
}

TEST(Scheduler, AdmitsInOrderAndOnlyWhatFits) {
  Scheduler scheduler;
  SchedulerView view = View(64, 10);
  view.head = HeadView{.pages = 10};
  EXPECT_EQ(scheduler.Plan(view).action, StepPlan::Action::kAdmit) << "alone, everything fits";
  view.running = {{.order = 0, .remaining = 1}};
  EXPECT_EQ(scheduler.Plan(view).action, StepPlan::Action::kRun) << "no page to spare";
  view.head = HeadView{.pages = 8};
  EXPECT_EQ(scheduler.Plan(view).action, StepPlan::Action::kAdmit);
  view.preempted = true;
  EXPECT_EQ(scheduler.Plan(view).action, StepPlan::Action::kRun);
  view.preempted = false;
  view.max_running = 1;
  EXPECT_EQ(scheduler.Plan(view).action, StepPlan::Action::kRun);
}

TEST(Scheduler, RulesHoldOnRandomStates) {
  std::mt19937 random(1);
  const auto pick = [&](uint32_t n) { return static_cast<int64_t>(random() % n); };
  Scheduler scheduler;
  for (int round = 0; round < 20'000; ++round) {
    SchedulerView view = View(2 + pick(100), pick(40));
    view.prompt_chunk = std::min(int64_t{1} << pick(7), view.max_step_tokens - 1);
    view.max_running = 1 + pick(40);
    view.max_prompt_rows = 1 + pick(20);
    for (int64_t i = pick(static_cast<uint32_t>(view.max_running) + 1); i > 0; --i) {
      const bool decodes = pick(2) == 0, awaits_end = decodes && pick(8) == 0;
      view.running.push_back({.order = static_cast<uint64_t>(1000 * pick(1000) + i),
                              .last_step = static_cast<uint64_t>(pick(5)),
                              .remaining = awaits_end ? 0
                                           : decodes  ? 1
                                                      : 2 + pick(200),
                              .in_chunks = 0,
                              .needs_page = decodes && !awaits_end && pick(4) == 0,
                              .wants_rows = pick(4) == 0});
      RunningView& added = view.running.back();
      if (!decodes && view.prompt_chunk > 1)
        added.in_chunks = added.remaining / view.prompt_chunk * view.prompt_chunk;
      // Rows may hold a chunk back for good: the engine has enough of them.
      if (added.in_chunks > 0) added.wants_rows = false;
    }
    if (pick(2) == 0) view.head = HeadView{.pages = 1 + pick(20)};
    const StepPlan plan = scheduler.Plan(view);
    if (plan.action == StepPlan::Action::kPreempt) {
      for (const RunningView& running : view.running)
        ASSERT_LE(
            std::pair(running.remaining == 0, running.order),
            std::pair(view.running[plan.victim].remaining == 0, view.running[plan.victim].order))
            << "LATEST-YIELDS";
      continue;
    }
    if (plan.action == StepPlan::Action::kAdmit) {
      ASSERT_TRUE(view.head && static_cast<int64_t>(view.running.size()) < view.max_running);
      ASSERT_TRUE(view.running.empty() || view.head->pages < view.available_pages) << "RESERVE";
      continue;
    }
    int64_t tokens = 0;
    int64_t pages = 0;
    int64_t rows = 0;
    int64_t prompt_tokens = 0;
    std::vector<bool> planned(view.running.size(), false);
    for (const Chunk& chunk : plan.chunks) {
      const RunningView& running = view.running[chunk.index];
      ASSERT_FALSE(planned[chunk.index]);
      planned[chunk.index] = true;
      ASSERT_GE(chunk.tokens, 1);
      ASSERT_LE(chunk.tokens, running.remaining);
      if (running.remaining > 1 && chunk.tokens < running.in_chunks) {
        ASSERT_EQ(chunk.tokens % view.prompt_chunk, 0) << "WHOLE-CHUNKS";
      }
      tokens += chunk.tokens;
      pages += running.needs_page;
      if (running.remaining > 1) prompt_tokens += chunk.tokens;
      if (running.wants_rows && running.remaining > 1) rows += chunk.tokens;
    }
    ASSERT_LE(tokens, view.max_step_tokens) << "BUDGET";
    ASSERT_LE(rows, view.max_prompt_rows);
    ASSERT_LE(pages, view.available_pages);
    const bool has_work = std::ranges::any_of(
        view.running, [](const RunningView& running) { return running.remaining > 0; });
    ASSERT_TRUE(!has_work || tokens > 0) << "PROGRESS";
    // OLDEST-HALF: the oldest prompt runs, unless rows hold it back.
    const auto oldest = std::ranges::min_element(view.running, {}, [](const RunningView& r) {
      return std::pair(r.remaining <= 1, r.order);
    });
    if (oldest != view.running.end() && oldest->remaining > 1 && !oldest->wants_rows) {
      const auto index = static_cast<int32_t>(oldest - view.running.begin());
      int64_t got = 0;
      for (const Chunk& chunk : plan.chunks) got += chunk.index == index ? chunk.tokens : 0;
      ASSERT_TRUE(got == oldest->remaining || 2 * got >= prompt_tokens) << "OLDEST-HALF";
    }
    // DECODE-FIRST: a decode that waits has waited no longer than one that runs.
    for (size_t i = 0; i < view.running.size(); ++i) {
      if (planned[i] || view.running[i].remaining != 1) continue;
      for (const Chunk& chunk : plan.chunks) {
        const RunningView& other = view.running[chunk.index];
        ASSERT_TRUE(other.remaining != 1 || other.last_step <= view.running[i].last_step);
      }
    }
  }
}

}  // namespace
}  // namespace nibble::engine
