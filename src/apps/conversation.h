// One model, talked to from the terminal: the same request path as the API's chat endpoint.
#pragma once

#include <boost/json.hpp>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "apps/load.h"
#include "engine/generate.h"
#include "server/api/served_model.h"

namespace nibble::apps {

struct AnswerOptions {
  float temperature = -1;   // below 0: the model's default
  int64_t max_tokens = -1;  // -1: the model's default, or the rest of the context
  int64_t seed = -1;        // -1: a random one
  bool raw = false;         // the prompt as it is, without the chat template
};

struct Answer {
  std::string text;
  int64_t prompt_tokens = 0;
  int64_t tokens = 0;
  double prefill_seconds = 0;  // until the first token
  double decode_seconds = 0;   // from the first to the last
  bool stopped = false;        // by the caller
  engine::FinishReason reason = engine::FinishReason::kStop;
  std::optional<uint64_t> logits_hash;  // absent when the answer was stopped
};

class Conversation {
 public:
  // A signal while the model loads ends the program (ExitOnSignal).
  static Result<Conversation> Open(const ModelOptions& options);

  // Answers the messages. on_text gets the text as it comes, on this thread; return false from it
  // to stop the answer.
  Result<Answer> Ask(const boost::json::array& messages, const AnswerOptions& options,
                     const std::function<bool(std::string_view)>& on_text);
  // The same for a plain text that is continued.
  Result<Answer> Continue(std::string_view prompt, const AnswerOptions& options,
                          const std::function<bool(std::string_view)>& on_text);

  const LoadedModel& loaded() const { return loaded_; }
  bool has_chat_template() const { return served_->chat_template.has_value(); }

  // "42 tokens, 81.3 tokens/s, ..., last logits 0123456789abcdef": of an answer's decoding.
  std::string SpeedLine(const Answer& answer) const;

 private:
  Conversation(LoadedModel loaded, std::shared_ptr<const server::ServedModel> served)
      : loaded_(std::move(loaded)), served_(std::move(served)) {}

  Result<Answer> Run(std::vector<int32_t> tokens, engine::SamplingParams sampling,
                     const std::function<bool(std::string_view)>& on_text);

  LoadedModel loaded_;
  std::shared_ptr<const server::ServedModel> served_;
};

}  // namespace nibble::apps
