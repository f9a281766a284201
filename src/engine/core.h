// The core: everything between a request's arrival and its events, one step at a time, without
// threads. The engine thread owns it; tests drive it directly.
//
// A step border is where requests end early (cancelled, past their deadline) and where the plan is
// made. Then the batch is launched, the step before it is read (LaunchedStep), and events are
// posted. Invariants (asserted by
// core_test.cc through CheckInvariants):
//   HELD        a running sequence holds the pages of its computed tokens; every reference of the
//               cache belongs to exactly one running sequence.
//   ONE-WRITER  a page that a step writes has one reference and is not indexed.
//   EXACT       a request's tokens and log-probabilities depend on the request alone: k and v of a
//               token are a function of its history, rows do not see each other, draws are
//               counter-based.
//   OWN-STATE   where the model has recurrent layers, a running sequence has a live state slot that
//               nobody else has; it holds the state after its computed tokens.
//   OWN-SLOT    a running sequence has a slot for drawn tokens (Sampler::drawn) that nobody else
//               has.
//   ONE-FORM    where prompts are computed in chunks, or with activations in NVFP4 or FP8, a
//               position's form follows from its sequence's prompt alone (Sequence::FormBorder);
//               other sequences see the pages and states of whole chunks, or of the prompt, alone,
//               as a longer prompt computes the rest in another form.
//   ONE-ROPE    all cached tokens of a sequence were rotated with the frequencies that its length
//               asks for (LongRoPE): a sequence that crosses the border computes its cache anew.
//   ENDS-ONCE   each choice gets one Done, or the request one Error, and nothing after it.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/batch_builder.h"
#include "engine/cache/kv_cache.h"
#include "engine/cache/state_slots.h"
#include "engine/launched_step.h"
#include "engine/page_populator.h"
#include "engine/prompt_budget.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "models/model.h"

namespace nibble::engine {

struct CoreSetup {
  models::Model* model = nullptr;              // prepared; outlives the core
  const text::Tokenizer* tokenizer = nullptr;  // may be null; outlives the core
  EngineOptions options;
  StepLimits limits;
  MemoryPlan plan;
  std::function<Clock::time_point()> now = &Clock::now;
  // Whether a step is launched before the one before it has been read. Absent: where it runs beside
  // the host.
  std::optional<bool> launches_ahead;
};

// Rows of logits that a step spends on prompt log-probabilities: bounds rows * vocabulary.
StepLimits MakeStepLimits(const EngineOptions& options, int64_t max_model_len);
int64_t TokenizerVocab(const text::Tokenizer* tokenizer, int64_t model_vocab);
Sampler::Options MakeSamplerOptions(const EngineOptions& options, const StepLimits& limits,
                                    int64_t model_vocab, const text::Tokenizer* tokenizer);

class Core {
 public:
  static Result<std::unique_ptr<Core>> Create(CoreSetup setup);
  ~Core();

  void Add(std::shared_ptr<ActiveRequest> request);
  bool idle() const { return requests_.empty() && in_flight_ == nullptr; }

  // One step border: launches a step, if there is work, and reads the one before it. Events wait in
  // the outbox, so that whoever hears of an end finds it in the statistics and its place free.
  void Step();

  // Ends every request with this error.
  void FailAll(const Error& error);

  // Empties the outbox into the sinks; events of cancelled requests are dropped.
  void PostEvents();

  // Requests that ended since the last call.
  std::vector<RequestId> TakeEnded() { return std::exchange(ended_, {}); }

  const EngineStats& stats() const { return stats_; }
  const KvCache& cache() const { return cache_; }

  // Empty if every invariant holds. For tests.
  std::string CheckInvariants() const;

 private:
  using Steps = std::array<LaunchedStep, 2>;
  Core(CoreSetup setup, models::KvPool pool, std::unique_ptr<Sampler> sampler, Steps steps);

  // Step border (core_border.cc).
  void EndEarly(Clock::time_point now);
  void PlanStep(LaunchedStep& step, Clock::time_point now);
  void FillView();
  int64_t FormBorder(const Sequence& sequence) const {
    return sequence.FormBorder(prompt_chunk_, setup_.model->info().prompt_forms.any());
  }
  int32_t AllocatePage();
  void Admit(Sequence& sequence);
  void Preempt(Sequence& sequence);
  void Enqueue(Sequence& sequence);
  void FindSharedPages(Sequence& sequence);
  int64_t PagesToAdmit(const Sequence& sequence) const;
  void ReleaseCaches(Sequence& sequence);
  void ChooseRope(Sequence& sequence);
  bool RecomputeBeyondRopeBorder();
  bool KeepsSnapshots() const;
  int64_t LastStateBorder(const Sequence& sequence) const;
  std::array<int64_t, 2> SnapshotBorders(const Sequence& sequence) const;
  int64_t ChunkEnd(const Sequence& sequence, int64_t tokens) const;
  void TakeSnapshot(Sequence& sequence);
  void EnsureHashes(Sequence& sequence, int64_t pages);
  void Fail(ActiveRequest& request, const Error& error);
  void Drop(ActiveRequest& request, FinishReason counted_as);

  void Launch(LaunchedStep& step);
  void Settle(const LaunchedStep& step);
  // (V): a row of the step launched last. Valid until the next call.
  std::span<const float> HostLogits(size_t row);

  // What launched steps gave (core_output.cc).
  void ReadStep();
  void IndexFullPages(Sequence& sequence);
  void UseRow(const LaunchedStep& step, size_t row, Clock::time_point now);
  void CompletePrompt(Sequence& sequence);
  void Append(const LaunchedStep& step, size_t row, Clock::time_point now);
  void Emit(Sequence& sequence, std::string text);
  void Finish(Sequence& sequence, DoneEvent done, Clock::time_point now);
  void ObserveToken(Sequence& sequence, Clock::time_point now);
  void ObserveDone(const Sequence& sequence, FinishReason reason, Clock::time_point now);
  void EndRequest(ActiveRequest& request);
  void Post(ActiveRequest& request, StreamEvent event);
  void Sweep();

  const CoreSetup setup_;
  const int64_t prompt_chunk_;  // models::PromptChunk
  models::KvPool pool_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<PagePopulator> populator_;  // of the host's memory
  KvCache cache_;
  StateSlots states_;
  BatchBuilder batch_;
  Scheduler scheduler_;
  PromptBudget prompt_budget_;
  SchedulerView view_;
  EngineStats stats_;

  std::vector<std::shared_ptr<ActiveRequest>> requests_;
  std::vector<Sequence*> waiting_;  // by order
  std::vector<Sequence*> running_;
  std::vector<RequestId> ended_;
  std::vector<std::pair<std::shared_ptr<ActiveRequest>, StreamEvent>> outbox_;
  const bool launches_ahead_;
  Steps steps_;                        // in turn
  LaunchedStep* in_flight_ = nullptr;  // launched, not read
  std::vector<int32_t> drawn_slots_;   // free ones, a stack
  std::vector<int32_t> shared_;        // pages found by FindSharedPages
  const float* logits_ = nullptr;      // (R, V) of the step launched last, on the model's device
  std::vector<float> host_logits_;     // (V)
  uint64_t arrivals_ = 0;
  uint64_t step_ = 0;
};

}  // namespace nibble::engine
