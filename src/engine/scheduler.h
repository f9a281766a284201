// The scheduler: what the next step does, as a pure function of numbers.
//
// Plan looks at a SchedulerView and answers with one action: pre-empt a running sequence, admit the
// head of the queue, or run these chunks. The core carries the action out and asks again until it
// is told to run; so every decision sees the true state, and the same state gives the same plan.
//
// Rules, by name (asserted by scheduler_test.cc):
//   BUDGET           a step has at most max_step_tokens tokens and max_running sequences.
//   DECODE-FIRST     sequences that need one token come before prompts; when they do not all fit,
//                    those that waited longest run. Prompts keep an eighth of the budget, and
//                    beside such sequences take at most max_prompt_tokens.
//   OLDEST-HALF      of the prompt budget the oldest prompt gets at least half, the shortest ones
//                    the rest: long prompts never starve, and never make short ones wait for all
//                    of them.
//   IN-ORDER         admission is first come, first served; nothing overtakes a head that does not
//                    fit.
//   RESERVE          a sequence is admitted only if its whole known length fits, with one page to
//                    spare per running sequence.
//   LATEST-YIELDS    when a token needs a page and none is left, the latest arrival is pre-empted;
//                    first of all those with nothing left to do, which end soon and lose nothing.
//   WHOLE-CHUNKS     a prompt stops between chunks of prompt_chunk positions alone, or in its tail.
//   PROGRESS         if anything has something to do or waits, the plan is not empty.
// Source: continuous batching (Orca), chunked prefill (Sarathi), as serving systems combine them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace nibble::engine {

// A running sequence: it holds pages for every token it knows, except perhaps for the last one.
struct RunningView {
  uint64_t order = 0;      // arrival; smaller = earlier; unique
  uint64_t last_step = 0;  // when it last ran
  int64_t remaining = 0;   // tokens whose k and v are missing: 1 = decoding, 0 = nothing to do
  int64_t in_chunks = 0;   // of these: up to the end of the prompt's last whole chunk
  bool needs_page = false;
  bool wants_rows = false;  // prompt log-probabilities: every token needs a row of logits
};

struct HeadView {
  int64_t pages = 0;  // that admission takes out of the available ones
};

struct SchedulerView {
  int64_t max_step_tokens = 0;  // more than prompt_chunk
  int64_t prompt_chunk = 1;
  int64_t max_prompt_tokens = 0;  // of a step in which others need one token (PromptBudget)
  int64_t max_running = 0;
  int64_t max_prompt_rows = 0;  // rows of logits for prompt log-probabilities
  int64_t available_pages = 0;
  bool preempted = false;  // in this step already: then nothing is admitted
  std::vector<RunningView> running;
  std::optional<HeadView> head;  // first of the queue

  void Clear() {
    running.clear();
    head.reset();
    preempted = false;
  }
};

struct Chunk {
  int32_t index = 0;   // into running
  int32_t tokens = 0;  // >= 1
};

struct StepPlan {
  enum class Action { kRun, kAdmit, kPreempt } action = Action::kRun;
  int32_t victim = -1;        // kPreempt: index into running
  std::vector<Chunk> chunks;  // kRun
};

class Scheduler {
 public:
  // The plan stays valid until the next call. Owns scratch alone, no state.
  const StepPlan& Plan(const SchedulerView& view);

 private:
  void SortByNeed(const SchedulerView& view);
  bool ShouldAdmit(const SchedulerView& view, int64_t reserved_pages, int64_t prompt_budget) const;
  void PlanPrompts(const SchedulerView& view, int64_t budget);

  StepPlan plan_;
  std::vector<int32_t> decodes_;  // by last_step, then order
  std::vector<int32_t> prompts_;  // by remaining, then order
};

}  // namespace nibble::engine
