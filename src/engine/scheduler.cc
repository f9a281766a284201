#include "engine/scheduler.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace nibble::engine {
namespace {

// So many prompts may be under way at once although the first ones could fill the step: enough for
// short prompts to pass a long one, few enough that they do not all hold pages for nothing.
constexpr size_t kPromptsUnderWay = 4;

// How many of `tokens` tokens may run so that the sequence stops where it may.
int64_t Cut(const RunningView& sequence, int64_t chunk, int64_t tokens) {
  const int64_t left = sequence.in_chunks - tokens;
  if (left <= 0) return tokens;
  return std::max<int64_t>(0, sequence.in_chunks - (left + chunk - 1) / chunk * chunk);
}

}  // namespace

const StepPlan& Scheduler::Plan(const SchedulerView& view) {
  plan_.action = StepPlan::Action::kRun;
  plan_.victim = -1;
  plan_.chunks.clear();
  SortByNeed(view);

  // DECODE-FIRST
  const bool prompts_wait = !prompts_.empty() || view.head.has_value();
  const int64_t prompt_share =
      prompts_wait ? std::max(view.prompt_chunk, view.max_step_tokens / 8) : 0;
  const int64_t decode_budget = std::max<int64_t>(1, view.max_step_tokens - prompt_share);
  const auto decodes = std::min<int64_t>(decode_budget, static_cast<int64_t>(decodes_.size()));
  int64_t decode_pages = 0;
  for (int64_t i = 0; i < decodes; ++i) decode_pages += view.running[decodes_[i]].needs_page;

  if (decode_pages > view.available_pages) {  // LATEST-YIELDS
    plan_.action = StepPlan::Action::kPreempt;
    const auto victim = std::ranges::max_element(view.running, {}, [](const RunningView& s) {
      return std::pair(s.remaining == 0, s.order);
    });
    plan_.victim = static_cast<int32_t>(victim - view.running.begin());
    return plan_;
  }
  const int64_t left = view.max_step_tokens - decodes;
  const int64_t prompt_budget = decodes > 0 ? std::min(left, view.max_prompt_tokens) : left;
  if (ShouldAdmit(view, decode_pages, prompt_budget)) {
    plan_.action = StepPlan::Action::kAdmit;
    return plan_;
  }
  for (int64_t i = 0; i < decodes; ++i) plan_.chunks.push_back({decodes_[i], 1});
  PlanPrompts(view, prompt_budget);
  return plan_;
}

void Scheduler::SortByNeed(const SchedulerView& view) {
  decodes_.clear();
  prompts_.clear();
  for (size_t i = 0; i < view.running.size(); ++i) {
    if (view.running[i].remaining == 0) continue;
    (view.running[i].remaining == 1 ? decodes_ : prompts_).push_back(static_cast<int32_t>(i));
  }
  std::ranges::sort(decodes_, {}, [&](int32_t i) {
    return std::tuple(view.running[i].last_step, view.running[i].order);
  });
  std::ranges::sort(prompts_, {}, [&](int32_t i) {
    return std::tuple(view.running[i].remaining, view.running[i].order);
  });
}

bool Scheduler::ShouldAdmit(const SchedulerView& view, int64_t reserved_pages,
                            int64_t prompt_budget) const {
  const auto running = static_cast<int64_t>(view.running.size());
  if (!view.head || view.preempted || running >= view.max_running) return false;
  // RESERVE; alone, any sequence fits (the memory plan sees to that).
  const int64_t spare = running == 0 ? 0 : running + 1;
  if (view.head->pages + reserved_pages + spare > view.available_pages) return false;
  int64_t under_way = 0;
  for (const int32_t i : prompts_) under_way += view.running[i].remaining;
  return under_way < prompt_budget || prompts_.size() < kPromptsUnderWay;
}

void Scheduler::PlanPrompts(const SchedulerView& view, int64_t budget) {
  if (prompts_.empty() || budget <= 0) return;
  int64_t rows = view.max_prompt_rows;
  // How many of `wish` tokens sequence i may run; takes them from the budgets.
  const auto take = [&](int32_t i, int64_t wish) -> int64_t {
    int64_t tokens = std::min({wish, budget, view.running[i].remaining});
    if (view.running[i].wants_rows) {
      tokens = Cut(view.running[i], view.prompt_chunk, std::min(tokens, rows));
      rows -= tokens;
    } else {
      tokens = Cut(view.running[i], view.prompt_chunk, tokens);
    }
    budget -= tokens;
    return tokens;
  };
  const int32_t oldest =
      *std::ranges::min_element(prompts_, {}, [&](int32_t i) { return view.running[i].order; });
  const int64_t half_in_chunks = (budget + 1) / 2 + view.prompt_chunk - 1;
  int64_t oldest_tokens =
      take(oldest, half_in_chunks - half_in_chunks % view.prompt_chunk);  // OLDEST-HALF
  for (const int32_t i : prompts_) {
    if (i == oldest) continue;
    const int64_t tokens = take(i, budget);
    if (tokens > 0) plan_.chunks.push_back({i, static_cast<int32_t>(tokens)});
  }
  // What the others left over.
  const int64_t more = std::min(budget, view.running[oldest].remaining - oldest_tokens);
  oldest_tokens =
      Cut(view.running[oldest], view.prompt_chunk,
          oldest_tokens + (view.running[oldest].wants_rows ? std::min(more, rows) : more));
  if (oldest_tokens > 0) plan_.chunks.push_back({oldest, static_cast<int32_t>(oldest_tokens)});
}

}  // namespace nibble::engine
