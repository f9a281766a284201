// Generate: one request, answered as a value. For run, bench, eval and tests.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"

namespace nibble::engine {

struct GeneratedChoice {
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;
  DoneEvent done;
};

struct Generation {
  PromptEvent prompt;
  std::vector<GeneratedChoice> choices;
};

// A sink that gathers a request's events. Thread-safe.
class CollectingSink : public EventSink {
 public:
  // on_delta (may be empty) is called on the engine thread: it must not block.
  explicit CollectingSink(int32_t choices, std::function<void(const DeltaEvent&)> on_delta = {});

  void Post(StreamEvent event) noexcept override;

  // Blocks until every choice is done and hands out the answer, once; or the request's error.
  Result<Generation> Wait();
  // False: not done when the time was over.
  bool WaitFor(std::chrono::milliseconds timeout);

 private:
  GeneratedChoice& Choice(int32_t index);
  bool Done() const { return error_.has_value() || unfinished_ == 0; }

  const std::function<void(const DeltaEvent&)> on_delta_;
  std::mutex mutex_;
  std::condition_variable done_;
  Generation generation_;
  int32_t unfinished_;
  std::optional<Error> error_;
};

// Submits the request (its sink is replaced) and waits for the answer. Any thread but the engine's.
Result<Generation> Generate(Engine& engine, Request request,
                            std::function<void(const DeltaEvent&)> on_delta = {});

}  // namespace nibble::engine
