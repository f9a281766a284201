// Core at a step border: early ends, admission, pre-emption, the batch.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/log.h"
#include "engine/core.h"

namespace nibble::engine {
void Core::EndEarly(Clock::time_point now) {
  for (const auto& request : requests_) {
    if (request->cancelled.load(std::memory_order_acquire)) {
      Drop(*request, FinishReason::kAbort);
    } else if (request->request.deadline && now >= *request->request.deadline) {
      const std::chrono::duration<double> age = now - request->arrival;
      Fail(*request,
           Error(Code::kDeadline, fmt::format("the deadline passed after {:.1f} s, {}", age.count(),
                                              request->planned ? "while the answer was computed"
                                                               : "while the request was queued")));
    }
  }
  Sweep();
}

void Core::PlanStep(LaunchedStep& step, Clock::time_point now) {
  batch_.Clear();
  step.parts.clear();
  step.requests.clear();
  step.prompt_tokens = 0;
  ++step_;
  // Whoever gives its caches up comes back in a later step, when its tokens have been seen.
  view_.preempted = RecomputeBeyondRopeBorder();
  for (;;) {
    FillView();
    const StepPlan& plan = scheduler_.Plan(view_);
    if (plan.action == StepPlan::Action::kAdmit) {
      Admit(*waiting_.front());
    } else if (plan.action == StepPlan::Action::kPreempt) {
      Preempt(*running_[plan.victim]);
      view_.preempted = true;
    } else {
      for (const Chunk& chunk : plan.chunks) {
        Sequence& sequence = *running_[chunk.index];
        if (sequence.length() > static_cast<int64_t>(sequence.pages.size()) * cache_.page_size())
          sequence.pages.push_back(AllocatePage());
        sequence.last_step = step_;
        if (!sequence.first_planned) {
          sequence.first_planned = now;
          sequence.request.planned = true;
          const std::chrono::duration<double> queued = now - sequence.request.arrival;
          stats_.request_queue_time_seconds.Observe(queued.count());
        }
        const int64_t end = ChunkEnd(sequence, chunk.tokens);
        if (chunk.tokens > 1) step.prompt_tokens += end - sequence.computed;
        batch_.Add(sequence, end - sequence.computed);
        step.parts.push_back({&sequence, end});
        step.requests.push_back(sequence.request.shared_from_this());
      }
      // Rows have been noted with their positions, so the sequences may move on already.
      for (const LaunchedStep::Part& part : step.parts) part.sequence->computed = part.end;
      return;
    }
  }
}

void Core::FillView() {
  const bool preempted = view_.preempted;
  view_.Clear();
  view_.preempted = preempted;
  view_.max_step_tokens = setup_.limits.max_tokens;
  view_.prompt_chunk = prompt_chunk_;
  view_.max_prompt_tokens = prompt_budget_.tokens();
  view_.max_running = setup_.options.max_sequences;
  view_.max_prompt_rows = setup_.limits.max_prompt_rows;
  view_.available_pages = cache_.available();
  for (const Sequence* sequence : running_) {
    const auto room = static_cast<int64_t>(sequence->pages.size()) * cache_.page_size();
    const bool awaits_end = sequence->awaits_end(setup_.plan.max_model_len);
    view_.running.push_back(
        {.order = sequence->order,
         .last_step = sequence->last_step,
         .remaining = awaits_end ? 0 : sequence->remaining(),
         .in_chunks =
             prompt_chunk_ == 1 ? 0 : sequence->ChunkBorder(prompt_chunk_) - sequence->computed,
         .needs_page = !awaits_end && sequence->length() > room,
         .wants_rows = sequence->collects_prompt_logprobs()});
  }
  if (!waiting_.empty()) {
    FindSharedPages(*waiting_.front());
    view_.head = HeadView{.pages = PagesToAdmit(*waiting_.front())};
  }
}

void Core::EnsureHashes(Sequence& sequence, int64_t pages) {
  const int32_t page_size = cache_.page_size();
  for (auto i = static_cast<int64_t>(sequence.page_hashes.size()); i < pages; ++i) {
    const std::span<const int32_t> content(sequence.tokens.data() + i * page_size,
                                           static_cast<size_t>(page_size));
    sequence.page_hashes.push_back(
        i == 0 ? cache_.ChainHash(0, content, sequence.cache_key)
               : cache_.ChainHash(sequence.page_hashes[i - 1], content, ""));
  }
}

// Fills shared_ with the pages of a leading part of the sequence that are computed already. At
// least one token is left to compute, since its logits are wanted; and the index is not used for
// positions whose logits are. ONE-FORM
void Core::FindSharedPages(Sequence& sequence) {
  shared_.clear();
  const int32_t page_size = cache_.page_size();
  int64_t limit = std::min(sequence.length() - 1, FormBorder(sequence));
  if (sequence.collects_prompt_logprobs())
    limit = std::min(limit, sequence.request.prompt_rows_done);
  const int64_t pages = limit / page_size;
  if (cache_.indexes()) {
    EnsureHashes(sequence, pages);
    int32_t parent = KvCache::kNoPage;
    for (int64_t i = 0; i < pages; ++i) {
      const std::span<const int32_t> content(sequence.tokens.data() + i * page_size,
                                             static_cast<size_t>(page_size));
      parent = cache_.Find(parent, sequence.page_hashes[i], content, sequence.cache_key);
      if (parent == KvCache::kNoPage) break;
      shared_.push_back(parent);
    }
    if (!states_.enabled()) return;
    // Recurrent layers can go on only where their state was kept.
    sequence.known_prefix = static_cast<int64_t>(shared_.size()) * page_size;
    while (!shared_.empty() && !states_.has(shared_.back())) shared_.pop_back();
    return;
  }
  if (states_.enabled()) return;
  // Without an index, siblings still share their prompt.
  for (const Sequence& sibling : sequence.request.choices) {
    if (&sibling == &sequence || sibling.state != Sequence::State::kRunning) continue;
    if (sibling.long_rope != sequence.long_rope) continue;
    const int64_t common = std::min({limit, sibling.computed, sequence.prompt_length}) / page_size;
    if (common > static_cast<int64_t>(shared_.size()))
      shared_.assign(sibling.pages.begin(), sibling.pages.begin() + common);
  }
}

// Pages that admission takes from the available ones, given shared_: new ones, and shared ones that
// nobody holds.
int64_t Core::PagesToAdmit(const Sequence& sequence) const {
  const int32_t page_size = cache_.page_size();
  int64_t pages = (sequence.length() + page_size - 1) / page_size;
  for (const int32_t page : shared_) pages -= cache_.references(page) > 0 ? 1 : 0;
  return pages;
}

int32_t Core::AllocatePage() {
  const int32_t page = cache_.Allocate();
  if (populator_ != nullptr) populator_->Reach(page);
  return page;
}

// The head of the queue, whose shared_ FillView has found.
void Core::Admit(Sequence& sequence) {
  waiting_.erase(waiting_.begin());
  const int32_t page_size = cache_.page_size();
  const int64_t pages = (sequence.length() + page_size - 1) / page_size;
  sequence.pages.reserve(static_cast<size_t>(setup_.limits.max_pages));
  sequence.page_hashes.reserve(static_cast<size_t>(setup_.limits.max_pages));
  for (const int32_t page : shared_) {
    cache_.Reference(page);
    sequence.pages.push_back(page);
  }
  const auto shared = static_cast<int64_t>(shared_.size());
  for (int64_t i = shared; i < pages; ++i) sequence.pages.push_back(AllocatePage());
  const int64_t assumed = sequence.request.request.assumed_context;
  sequence.computed = std::max(shared * page_size, assumed - assumed % prompt_chunk_);
  if (states_.enabled()) {
    sequence.state_slot = states_.AcquireLive();
    if (shared > 0) pool_.CopyState(states_.Find(shared_.back()), sequence.state_slot);
  }
  sequence.indexed_pages = cache_.indexes() ? shared : 0;
  sequence.drawn_slot = drawn_slots_.back();
  drawn_slots_.pop_back();
  sequence.state = Sequence::State::kRunning;
  running_.push_back(&sequence);
  if (sequence.first_planned) return;  // back after a pre-emption

  if (cache_.indexes()) {
    stats_.prefix_queries += sequence.prompt_length;
    stats_.prefix_hits += sequence.computed;
  }
  if (sequence.choice == 0) sequence.request.cached_tokens = sequence.computed;
}

void Core::Preempt(Sequence& sequence) {
  ++stats_.preemptions;
  LogDebug("request {} choice {}: pre-empted after {} tokens, the KV cache is full",
           sequence.request.request.id, sequence.choice, sequence.computed);
  ReleaseCaches(sequence);
  std::erase(running_, &sequence);
  sequence.state = Sequence::State::kWaiting;
  Enqueue(sequence);
}

// A sequence that grew beyond the border queues for a cache of other frequencies. Whether one did.
bool Core::RecomputeBeyondRopeBorder() {
  const int64_t border = setup_.model->info().rope_border;
  if (border == 0) return false;
  bool any = false;
  for (size_t i = 0; i < running_.size();) {
    Sequence& sequence = *running_[i];
    if (sequence.long_rope || sequence.length() <= border ||
        sequence.awaits_end(setup_.plan.max_model_len)) {
      ++i;
      continue;
    }
    any = true;
    LogDebug("request {} choice {}: computed anew, it crossed {} positions",
             sequence.request.request.id, sequence.choice, border);
    ReleaseCaches(sequence);
    running_.erase(running_.begin() + static_cast<int64_t>(i));
    sequence.state = Sequence::State::kWaiting;
    Enqueue(sequence);
  }
  return any;
}

// Caches of other frequencies are other caches: the prefix index sees another key.
void Core::ChooseRope(Sequence& sequence) {
  const int64_t border = setup_.model->info().rope_border;
  if (border == 0 || sequence.long_rope || sequence.length() <= border) return;
  sequence.long_rope = true;
  sequence.cache_key = sequence.request.request.cache_salt + '\0' + "long";
  sequence.page_hashes.clear();
}

bool Core::KeepsSnapshots() const { return states_.enabled() && cache_.indexes(); }

// The last border of pages, and of chunks, before the last known token, which is always computed:
// its logits are wanted. ONE-FORM
int64_t Core::LastStateBorder(const Sequence& sequence) const {
  const int64_t last = std::min(sequence.length() - 1, FormBorder(sequence));
  return last - last % std::max<int64_t>(cache_.page_size(), prompt_chunk_);
}

// Where the state is worth a snapshot before a prompt's end: where the prefix that others know
// ends, and at the last border.
std::array<int64_t, 2> Core::SnapshotBorders(const Sequence& sequence) const {
  const int64_t known = sequence.known_prefix;
  return {known - known % prompt_chunk_, LastStateBorder(sequence)};
}

// Where a chunk ends, given how many tokens it may have. With recurrent layers a prompt's chunk
// ends where its state is worth a snapshot.
int64_t Core::ChunkEnd(const Sequence& sequence, int64_t tokens) const {
  const int64_t begin = sequence.computed;
  const int64_t end = begin + tokens;
  if (!KeepsSnapshots()) return end;
  for (const int64_t border : SnapshotBorders(sequence))
    if (border > begin && border < end) return border;
  return end;
}

// After a step that ended on a page border worth keeping. Behind the prompt only the latest is
// kept, and none where prompts are computed in another form (ONE-FORM).
void Core::TakeSnapshot(Sequence& sequence) {
  const int32_t page_size = cache_.page_size();
  if (!KeepsSnapshots() || sequence.computed % page_size != 0) return;
  if (sequence.computed > FormBorder(sequence)) return;
  const bool in_prompt = sequence.computed < sequence.prompt_length;
  const auto borders = SnapshotBorders(sequence);
  if (in_prompt && std::ranges::find(borders, sequence.computed) == borders.end()) return;
  const int32_t page = sequence.pages[sequence.computed / page_size - 1];
  const int32_t slot = states_.Add(page);
  if (slot == StateSlots::kNoSlot) return;
  pool_.CopyState(sequence.state_slot, slot);
  if (in_prompt) return;
  if (sequence.snapshot_page >= 0) states_.Remove(sequence.snapshot_page);
  sequence.snapshot_page = page;
}

void Core::Enqueue(Sequence& sequence) {
  ChooseRope(sequence);
  const auto place = std::ranges::upper_bound(waiting_, sequence.order, {},
                                              [](const Sequence* s) { return s->order; });
  waiting_.insert(place, &sequence);
}

// Last page first: children are evicted before their parents.
void Core::ReleaseCaches(Sequence& sequence) {
  if (sequence.state_slot != StateSlots::kNoSlot) states_.ReleaseLive(sequence.state_slot);
  sequence.state_slot = StateSlots::kNoSlot;
  if (sequence.drawn_slot >= 0) drawn_slots_.push_back(std::exchange(sequence.drawn_slot, -1));
  sequence.snapshot_page = KvCache::kNoPage;
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page)
    cache_.Release(*page);
  sequence.pages.clear();
  sequence.computed = 0;
  sequence.indexed_pages = 0;
}

void Core::Fail(ActiveRequest& request, const Error& error) {
  Drop(request, FinishReason::kError);
  StreamEvent event{.kind = StreamEvent::Kind::kError};
  event.error = error;
  Post(request, std::move(event));
}

// Ends the request without a word.
void Core::Drop(ActiveRequest& request, FinishReason counted_as) {
  for (Sequence& sequence : request.choices) {
    if (sequence.state == Sequence::State::kRunning) ReleaseCaches(sequence);
    sequence.state = Sequence::State::kFinished;
  }
  stats_.requests_finished[static_cast<int>(counted_as)] += request.unfinished;
  EndRequest(request);
}

void Core::EndRequest(ActiveRequest& request) {
  request.ended = true;
  request.ticket = Ticket();
}

}  // namespace nibble::engine
