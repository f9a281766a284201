#include "engine/generate.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace nibble::engine {

CollectingSink::CollectingSink(int32_t choices, std::function<void(const DeltaEvent&)> on_delta)
    : on_delta_(std::move(on_delta)), unfinished_(choices) {}

GeneratedChoice& CollectingSink::Choice(int32_t index) {
  const auto size = static_cast<size_t>(index) + 1;
  if (generation_.choices.size() < size) generation_.choices.resize(size);
  return generation_.choices[index];
}

void CollectingSink::Post(StreamEvent event) noexcept {
  if (event.kind == StreamEvent::Kind::kDelta && on_delta_) on_delta_(event.delta);
  const std::lock_guard lock(mutex_);
  switch (event.kind) {
    case StreamEvent::Kind::kPrompt:
      generation_.prompt = std::move(event.prompt);
      break;
    case StreamEvent::Kind::kDelta: {
      GeneratedChoice& choice = Choice(event.delta.choice);
      choice.text += event.delta.text;
      choice.tokens.insert(choice.tokens.end(), event.delta.tokens.begin(),
                           event.delta.tokens.end());
      std::ranges::move(event.delta.logprobs, std::back_inserter(choice.logprobs));
      break;
    }
    case StreamEvent::Kind::kDone:
      Choice(event.done.choice).done = event.done;
      --unfinished_;
      break;
    case StreamEvent::Kind::kError:
      error_ = std::move(event.error);
      break;
  }
  if (Done()) done_.notify_all();
}

Result<Generation> CollectingSink::Wait() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return Done(); });
  if (error_) return tl::unexpected(*error_);
  return std::move(generation_);
}

bool CollectingSink::WaitFor(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return done_.wait_for(lock, timeout, [&] { return Done(); });
}

Result<Generation> Generate(Engine& engine, Request request,
                            std::function<void(const DeltaEvent&)> on_delta) {
  const auto sink = std::make_shared<CollectingSink>(request.sampling.n, std::move(on_delta));
  request.sink = sink;
  NIBBLE_TRY(engine.Submit(std::move(request), Ticket()));
  return sink->Wait();
}

}  // namespace nibble::engine
