// One HTTP request on its way through the engine: takes events from the engine thread, turns them
// into bytes on a worker, gives them to the exchange, and cancels when the client leaves.
//
// Hand-off: Post (engine thread) files an event under its choice and returns; it takes one short
// lock and never waits for the client. Deltas of a choice that are not yet written are merged, so a
// slow reader costs memory for its text, not for events, and no more than kMaxPending bytes: beyond
// that the answer ends with an error. Thread-safety: all public methods may be called from any
// thread.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/api/answer_writer.h"
#include "server/api/errors.h"
#include "server/http/exchange.h"
#include "server/work_pool.h"

namespace nibble::server {

class AnswerRegistry;

class Answer : public std::enable_shared_from_this<Answer> {
 public:
  struct Setup {
    std::shared_ptr<Exchange> exchange;
    engine::Engine* engine = nullptr;  // outlives the answer's Close
    std::unique_ptr<AnswerWriter> writer;
    std::shared_ptr<WorkPool> pool;  // formats
    std::shared_ptr<AnswerRegistry> registry;
    int prompts = 1;
    int choices = 1;  // per prompt
    bool stream = false;
    bool deadline = false;  // no sign of life before the first token: a 504 must stay possible
  };
  static std::shared_ptr<Answer> Start(Setup setup);
  ~Answer();

  // What the engine's request for this prompt posts to.
  std::shared_ptr<engine::EventSink> Sink(int prompt);
  void Submitted(engine::RequestId id);
  // Ends the answer with an error: a status when nothing has been sent, else an event.
  void Fail(ApiError error);
  // Takes no more events and cancels what still runs in the engine.
  void Close();

  static constexpr size_t kMaxPending = 8 << 20;

 private:
  // What waits to be written of one choice.
  struct Slot {
    std::vector<engine::DeltaEvent> deltas;  // one chunk each
    std::optional<engine::DoneEvent> done;
    bool dirty = false;
  };
  struct Pending {
    std::vector<std::pair<int, engine::PromptEvent>> prompts;
    std::vector<std::pair<int, Slot>> slots;  // prompt, slot
  };

  explicit Answer(Setup setup);
  friend class PromptSink;
  void Post(int prompt, engine::StreamEvent event) noexcept;
  void File(int prompt, engine::StreamEvent event);  // under the lock
  void Append(std::vector<engine::DeltaEvent>& deltas, engine::DeltaEvent delta) const;
  Slot& SlotOf(int prompt, int32_t choice);
  void MarkDirty(int prompt, int32_t choice);
  bool ScheduleLocked();
  void Schedule();
  void Process();
  bool WritePending();  // false when there is nothing to do for now
  void Write(Pending pending);
  void EndWithError(const ApiError& error);
  void OnGone();
  void OnDrained();

  const Setup setup_;

  std::mutex mutex_;
  std::vector<Slot> slots_;  // prompt-major
  std::vector<int> dirty_;
  std::vector<std::pair<int, engine::PromptEvent>> prompt_events_;
  std::optional<ApiError> error_;
  std::vector<engine::RequestId> ids_;
  size_t pending_bytes_ = 0;
  int open_choices_;
  bool scheduled_ = false;  // a job is queued or runs
  bool waiting_ = false;    // for the client to take what it has
  bool closed_ = false;
};

// The answers under way, to be failed when the server stops. Thread-safe.
class AnswerRegistry {
 public:
  void Add(const std::shared_ptr<Answer>& answer);
  void Remove(Answer* answer);
  size_t size() const;
  void FailAll(const Error& error);
  void CloseAll();

 private:
  std::vector<std::shared_ptr<Answer>> All() const;

  mutable std::mutex mutex_;
  std::vector<std::pair<Answer*, std::weak_ptr<Answer>>> answers_;
};

}  // namespace nibble::server
