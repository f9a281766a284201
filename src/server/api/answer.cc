#include "server/api/answer.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "server/http/sse.h"

namespace nibble::server {

class PromptSink final : public engine::EventSink {
 public:
  PromptSink(std::shared_ptr<Answer> answer, int prompt)
      : answer_(std::move(answer)), prompt_(prompt) {}
  void Post(engine::StreamEvent event) noexcept override {
    answer_->Post(prompt_, std::move(event));
  }

 private:
  const std::shared_ptr<Answer> answer_;
  const int prompt_;
};

Answer::Answer(Setup setup)
    : setup_(std::move(setup)),
      slots_(static_cast<size_t>(setup_.prompts) * static_cast<size_t>(setup_.choices)),
      open_choices_(setup_.prompts * setup_.choices) {}

Answer::~Answer() { setup_.registry->Remove(this); }

std::shared_ptr<Answer> Answer::Start(Setup setup) {
  std::shared_ptr<Answer> answer(new Answer(std::move(setup)));
  answer->setup_.registry->Add(answer);
  Exchange& exchange = *answer->setup_.exchange;
  if (answer->setup_.stream && !answer->setup_.deadline) exchange.AllowEarlyStart(SseHead());
  exchange.SetCallbacks([answer] { answer->OnGone(); }, [answer] { answer->OnDrained(); });
  return answer;
}

std::shared_ptr<engine::EventSink> Answer::Sink(int prompt) {
  return std::make_shared<PromptSink>(shared_from_this(), prompt);
}

void Answer::Submitted(engine::RequestId id) {
  {
    std::lock_guard lock(mutex_);
    if (!closed_) {
      ids_.push_back(id);
      return;
    }
  }
  setup_.engine->Cancel(id);  // the client left in between
}

// ---- From the engine ----

void Answer::Post(int prompt, engine::StreamEvent event) noexcept {
  bool schedule = false;
  {
    std::lock_guard lock(mutex_);
    if (closed_ || error_) return;
    File(prompt, std::move(event));
    schedule = ScheduleLocked();
  }
  if (schedule) Schedule();
}

Answer::Slot& Answer::SlotOf(int prompt, int32_t choice) {
  return slots_[static_cast<size_t>(prompt) * static_cast<size_t>(setup_.choices) +
                static_cast<size_t>(choice)];
}

void Answer::MarkDirty(int prompt, int32_t choice) {
  Slot& slot = SlotOf(prompt, choice);
  if (slot.dirty) return;
  slot.dirty = true;
  dirty_.push_back(prompt * setup_.choices + choice);
}

// Clients see one chunk per delta as long as they keep up; what a slow one has not taken is merged.
void Answer::Append(std::vector<engine::DeltaEvent>& deltas, engine::DeltaEvent delta) const {
  constexpr size_t kMostApart = 16;
  if (deltas.empty() || (!waiting_ && deltas.size() < kMostApart)) {
    deltas.push_back(std::move(delta));
    return;
  }
  engine::DeltaEvent& last = deltas.back();
  last.text += delta.text;
  last.tokens.insert(last.tokens.end(), delta.tokens.begin(), delta.tokens.end());
  std::move(delta.logprobs.begin(), delta.logprobs.end(), std::back_inserter(last.logprobs));
}

void Answer::File(int prompt, engine::StreamEvent event) {
  switch (event.kind) {
    case engine::StreamEvent::Kind::kPrompt:
      prompt_events_.emplace_back(prompt, std::move(event.prompt));
      break;
    case engine::StreamEvent::Kind::kDelta: {
      engine::DeltaEvent& delta = event.delta;
      MarkDirty(prompt, delta.choice);
      pending_bytes_ += delta.text.size() + 4 * delta.tokens.size();
      for (const auto& logprob : delta.logprobs) pending_bytes_ += 24 + 8 * logprob.top.size();
      Append(SlotOf(prompt, delta.choice).deltas, std::move(delta));
      break;
    }
    case engine::StreamEvent::Kind::kDone:
      MarkDirty(prompt, event.done.choice);
      SlotOf(prompt, event.done.choice).done = std::move(event.done);
      break;
    case engine::StreamEvent::Kind::kError:
      error_ =
          ApiError{event.error.value_or(Error(Code::kInternal, "error without a message")), ""};
      break;
  }
  if (setup_.stream && pending_bytes_ > kMaxPending) {
    error_ = ApiError{Error(Code::kCancelled, "the client reads too slowly for this answer"), ""};
  }
}

void Answer::Fail(ApiError error) {
  bool schedule = false;
  {
    std::lock_guard lock(mutex_);
    if (closed_ || error_) return;
    error_ = std::move(error);
    schedule = ScheduleLocked();
  }
  if (schedule) Schedule();
}

// ---- On a worker ----

// True when the caller has to queue a job. An error does not wait for the client.
bool Answer::ScheduleLocked() {
  if (scheduled_ || (waiting_ && !error_)) return false;
  scheduled_ = true;
  return true;
}

void Answer::Schedule() {
  setup_.pool->Submit([self = shared_from_this()] { self->Process(); });
}

void Answer::Process() {
  try {
    while (WritePending()) {
    }
  } catch (const std::exception& error) {
    EndWithError({Error(Code::kInternal, error.what()), ""});
  }
}

bool Answer::WritePending() {
  Pending pending;
  std::optional<ApiError> error;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    error = error_;
    const bool nothing = dirty_.empty() && prompt_events_.empty();
    if (!error) {
      waiting_ = !nothing && setup_.stream && setup_.exchange->congested();
      if (nothing || waiting_) {
        scheduled_ = false;
        return false;
      }
    }
    pending.prompts = std::exchange(prompt_events_, {});
    for (const int at : std::exchange(dirty_, {})) {
      pending.slots.emplace_back(at / setup_.choices,
                                 std::exchange(slots_[static_cast<size_t>(at)], {}));
    }
    pending_bytes_ = 0;
  }
  // What came before an error is still part of a stream.
  if (!error || setup_.stream) Write(std::move(pending));
  if (error) EndWithError(*error);
  return !error;
}

void Answer::Write(Pending pending) {
  std::string out;
  int ended = 0;
  for (auto& [prompt, event] : pending.prompts) {
    setup_.writer->OnPrompt(prompt, std::move(event), out);
  }
  for (auto& [prompt, slot] : pending.slots) {
    for (engine::DeltaEvent& delta : slot.deltas) {
      setup_.writer->OnDelta(prompt, std::move(delta), out);
    }
    if (!slot.done) continue;
    setup_.writer->OnDone(prompt, *std::move(slot.done), out);
    ++ended;
  }
  bool complete = false;
  {
    std::lock_guard lock(mutex_);
    open_choices_ -= ended;
    complete = open_choices_ == 0 && ended > 0;
    if (complete) ids_.clear();
  }
  if (complete) setup_.writer->Finish(out);
  Exchange& exchange = *setup_.exchange;
  if (setup_.stream && !out.empty()) {
    exchange.StartStream(SseHead());
    exchange.Write(out);
  }
  if (!complete) return;
  if (setup_.stream) {
    exchange.Finish();
  } else {
    exchange.Respond({200, "application/json", std::move(out), {}});
  }
  Close();
}

void Answer::EndWithError(const ApiError& error) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;  // the last token came first
  }
  Exchange& exchange = *setup_.exchange;
  if (!exchange.Respond(ErrorResponse(error))) {
    exchange.Write(SseEvent(ErrorBody(error.error, error.param)) + SseEvent("[DONE]"));
    exchange.Finish();
  }
  Close();
}

// ---- The client ----

void Answer::OnGone() { Close(); }

void Answer::OnDrained() {
  bool schedule = false;
  {
    std::lock_guard lock(mutex_);
    if (!waiting_) return;
    waiting_ = false;
    schedule = ScheduleLocked();
  }
  if (schedule) Schedule();
}

void Answer::Close() {
  std::vector<engine::RequestId> running;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    running.swap(ids_);
    slots_.clear();
    dirty_.clear();
    prompt_events_.clear();
  }
  for (const engine::RequestId id : running) setup_.engine->Cancel(id);
}

// ---- Registry ----

void AnswerRegistry::Add(const std::shared_ptr<Answer>& answer) {
  std::lock_guard lock(mutex_);
  answers_.emplace_back(answer.get(), answer);
}

void AnswerRegistry::Remove(Answer* answer) {
  std::lock_guard lock(mutex_);
  std::erase_if(answers_, [=](const auto& entry) { return entry.first == answer; });
}

size_t AnswerRegistry::size() const {
  std::lock_guard lock(mutex_);
  return answers_.size();
}

std::vector<std::shared_ptr<Answer>> AnswerRegistry::All() const {
  std::vector<std::shared_ptr<Answer>> all;
  std::lock_guard lock(mutex_);
  all.reserve(answers_.size());
  for (const auto& [unused, weak] : answers_) {
    if (auto answer = weak.lock()) all.push_back(std::move(answer));
  }
  return all;
}

void AnswerRegistry::FailAll(const Error& error) {
  for (const auto& answer : All()) answer->Fail({error, ""});
}

void AnswerRegistry::CloseAll() {
  for (const auto& answer : All()) answer->Close();
}

}  // namespace nibble::server
