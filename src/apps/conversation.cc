#include "apps/conversation.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "apps/signals.h"
#include "engine/logits_hash.h"
#include "server/api/prompts.h"

namespace nibble::apps {
namespace {

using Clock = std::chrono::steady_clock;

// Hands events from the engine's thread to the one that prints. Thread-safe.
class EventQueue final : public engine::EventSink {
 public:
  void Post(engine::StreamEvent event) noexcept override {
    {
      std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
    }
    ready_.notify_one();
  }

  engine::StreamEvent Next() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return !events_.empty(); });
    engine::StreamEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<engine::StreamEvent> events_;
};

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

void ApplyOptions(const AnswerOptions& options, server::GenerationRequest* request) {
  if (options.temperature >= 0) request->temperature = options.temperature;
  if (options.max_tokens >= 0) request->max_tokens = options.max_tokens;
  if (options.seed >= 0) request->seed = options.seed;
}

}  // namespace

Result<Conversation> Conversation::Open(const ModelOptions& options) {
  const ExitOnSignal exit_on_signal;
  NIBBLE_ASSIGN(LoadedModel loaded, LoadEngine(options));
  NIBBLE_ASSIGN(auto served, server::MakeServedModel({
                                 .engine = loaded.engine,
                                 .names = {options.model},
                                 .root = loaded.path,
                                 .tokenizer_config_json = loaded.tokenizer_config_json,
                                 .special_tokens_map_json = loaded.special_tokens_map_json,
                                 .generation_config_json = loaded.generation_config_json,
                                 .chat_template = loaded.chat_template,
                                 .tool_use_template = loaded.tool_use_template,
                             }));
  return Conversation(std::move(loaded), std::move(served));
}

Result<Answer> Conversation::Ask(const boost::json::array& messages, const AnswerOptions& options,
                                 const std::function<bool(std::string_view)>& on_text) {
  server::ChatRequest request;
  request.messages = messages;
  ApplyOptions(options, &request);
  auto prompt = server::PrepareChat(*served_, request);
  if (!prompt) return tl::unexpected(prompt.error().error);
  auto sampling = server::PrepareSampling(
      *served_, request, static_cast<int64_t>(prompt->tokens.size()), served_->default_max_tokens);
  if (!sampling) return tl::unexpected(sampling.error().error);
  return Run(std::move(prompt->tokens), std::move(*sampling), on_text);
}

Result<Answer> Conversation::Continue(std::string_view prompt, const AnswerOptions& options,
                                      const std::function<bool(std::string_view)>& on_text) {
  server::GenerationRequest request;
  ApplyOptions(options, &request);
  NIBBLE_ASSIGN(std::vector<int32_t> tokens, loaded_.engine->tokenizer().Encode(prompt));
  auto sampling = server::PrepareSampling(*served_, request, static_cast<int64_t>(tokens.size()),
                                          served_->default_max_tokens);
  if (!sampling) return tl::unexpected(sampling.error().error);
  return Run(std::move(tokens), std::move(*sampling), on_text);
}

Result<Answer> Conversation::Run(std::vector<int32_t> tokens, engine::SamplingParams sampling,
                                 const std::function<bool(std::string_view)>& on_text) {
  Answer answer;
  answer.prompt_tokens = static_cast<int64_t>(tokens.size());
  sampling.hashes_logits = true;
  const auto queue = std::make_shared<EventQueue>();
  const Clock::time_point start = Clock::now();
  Clock::time_point first = start, last = start;
  NIBBLE_ASSIGN(engine::Ticket ticket, loaded_.engine->Reserve());
  NIBBLE_ASSIGN(const engine::RequestId id, loaded_.engine->Submit({.id = "terminal",
                                                                    .tokens = std::move(tokens),
                                                                    .sampling = std::move(sampling),
                                                                    .sink = queue},
                                                                   std::move(ticket)));
  while (true) {
    engine::StreamEvent event = queue->Next();
    switch (event.kind) {
      case engine::StreamEvent::Kind::kPrompt:
        break;
      case engine::StreamEvent::Kind::kDelta:
        last = Clock::now();
        if (answer.tokens == 0) first = last;
        answer.tokens += static_cast<int64_t>(event.delta.tokens.size());
        answer.text += event.delta.text;
        if (!on_text(event.delta.text)) {
          loaded_.engine->Cancel(id);
          answer.stopped = true;
          answer.reason = engine::FinishReason::kAbort;
        }
        break;
      case engine::StreamEvent::Kind::kDone:
        answer.reason = event.done.reason;
        answer.logits_hash = event.done.logits_hash;
        break;
      case engine::StreamEvent::Kind::kError:
        return tl::unexpected(*event.error);
    }
    if (answer.stopped || event.kind == engine::StreamEvent::Kind::kDone) break;
  }
  answer.prefill_seconds = Seconds(first - start);
  answer.decode_seconds = Seconds(last - first);
  return answer;
}

std::string Conversation::SpeedLine(const Answer& answer) const {
  // The first token belongs to the prompt's step.
  std::string line = fmt::format(
      "{} prompt tokens in {:.2f} s; {}", answer.prompt_tokens, answer.prefill_seconds,
      apps::SpeedLine(loaded_, std::max<int64_t>(answer.tokens - 1, 0), answer.decode_seconds));
  if (answer.logits_hash) line += ", last logits " + engine::FormatLogitsHash(*answer.logits_hash);
  return line;
}

}  // namespace nibble::apps
