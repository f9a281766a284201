// The answers of /v1/chat/completions, whole and streamed.
#include <fmt/format.h>

#include <iterator>

#include "base/check.h"
#include "server/api/answer_json.h"
#include "server/api/answer_writer.h"
#include "server/api/ids.h"
#include "server/api/json_text.h"

namespace nibble::server {
namespace {

using text::AnswerEvent;

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;
};

// One answer of n. In a stream `logprobs` and `ids` hold what no chunk has carried yet; otherwise
// everything is gathered until the end.
struct Choice {
  std::optional<text::AnswerParser> parser;
  bool role_sent = false;
  std::string content;
  std::string reasoning;
  std::vector<ToolCall> calls;
  std::string logprobs;
  std::string ids;
  engine::DoneEvent done;
};

class ChatWriter final : public AnswerWriter {
 public:
  ChatWriter(std::shared_ptr<const ServedModel> model, const ChatRequest& request,
             const ChatStart& start, std::vector<int32_t> prompt, WriterOptions options);

  void OnPrompt(int prompt, engine::PromptEvent event, std::string& out) override;
  void OnDelta(int prompt, engine::DeltaEvent event, std::string& out) override;
  void OnDone(int prompt, engine::DoneEvent event, std::string& out) override;
  void Finish(std::string& out) override;

 private:
  void Gather(Choice& choice, AnswerEvent event);
  void Stream(int index, const AnswerEvent& event, std::string& out);
  void AppendChunk(int index, std::string_view delta, const engine::DoneEvent* done,
                   std::string& out);
  void AppendHead(std::string_view object, std::string& out) const;
  void AppendTokenDetails(Choice& choice, std::string& out);
  void AppendMessage(const Choice& choice, std::string& out) const;
  std::string_view FinishName(const Choice& choice) const;
  bool Wanted(const AnswerEvent& event) const;
  std::string CallId(const AnswerEvent& event) const;
  Usage UsageSoFar() const;

  const std::shared_ptr<const ServedModel> model_;
  const WriterOptions options_;
  const std::vector<int32_t> prompt_;
  const TokenNames names_;
  const int64_t created_ = UnixSeconds();
  const bool short_call_ids_;
  const bool stream_;
  const bool logprobs_;
  const bool token_ids_;
  const bool prompt_logprobs_;
  const bool include_reasoning_;
  const bool parallel_calls_;
  const bool usage_at_end_;
  const bool usage_always_;

  std::vector<Choice> choices_;
  std::string chunk_head_;  // of every chunk, up to the list of choices
  std::string prompt_logprobs_json_;
  bool prompt_ids_sent_ = false;
  int64_t cached_tokens_ = 0;
  int64_t completion_tokens_ = 0;
};

ChatWriter::ChatWriter(std::shared_ptr<const ServedModel> model, const ChatRequest& request,
                       const ChatStart& start, std::vector<int32_t> prompt, WriterOptions options)
    : model_(std::move(model)),
      options_(std::move(options)),
      prompt_(std::move(prompt)),
      names_(model_->tokenizer(), request.return_tokens_as_token_ids),
      short_call_ids_(start.parsers.tools == "mistral"),
      stream_(request.stream),
      logprobs_(request.logprobs),
      token_ids_(request.return_token_ids),
      prompt_logprobs_(request.prompt_logprobs.has_value()),
      include_reasoning_(request.include_reasoning),
      parallel_calls_(request.parallel_tool_calls),
      usage_at_end_(request.include_usage.value_or(false)),
      usage_always_(request.continuous_usage_stats && usage_at_end_),
      choices_(static_cast<size_t>(request.n)) {
  for (Choice& choice : choices_) {
    auto parser = text::AnswerParser::Make({.names = start.parsers,
                                            .start = start.start,
                                            .whole_tool_calls = !stream_,
                                            .tools = &request.tools});
    NIBBLE_CHECK(parser.has_value(), "parser names are checked when the model is set");
    choice.parser = std::move(*parser);
  }
  chunk_head_ = "data: ";
  AppendHead("chat.completion.chunk", chunk_head_);
}

void ChatWriter::AppendHead(std::string_view object, std::string& out) const {
  out += R"({"id":)";
  AppendJsonString(out, options_.id);
  fmt::format_to(std::back_inserter(out), R"(,"object":"{}","created":{},"model":)", object,
                 created_);
  AppendJsonString(out, model_->name());
  out += R"(,"choices":[)";
}

Usage ChatWriter::UsageSoFar() const {
  Usage usage{static_cast<int64_t>(prompt_.size()), completion_tokens_, std::nullopt};
  if (options_.cached_details) usage.cached_tokens = cached_tokens_;
  return usage;
}

bool ChatWriter::Wanted(const AnswerEvent& event) const {
  if (event.kind == AnswerEvent::Kind::kReasoning) return include_reasoning_;
  if (event.kind == AnswerEvent::Kind::kContent) return true;
  return parallel_calls_ || event.index == 0;
}

// Templates print the ids of earlier calls: where the model names its calls, its own names are what
// it knows, and Mistral's templates take nine letters and digits only.
std::string ChatWriter::CallId(const AnswerEvent& event) const {
  constexpr size_t kMistralIdSize = 9;
  if (short_call_ids_) {
    const bool fits = event.id.size() == kMistralIdSize;
    return fits ? event.id : RandomId("").substr(0, kMistralIdSize);
  }
  return event.id.empty() ? RandomId("call_") : event.id;
}

void ChatWriter::OnPrompt(int, engine::PromptEvent event, std::string&) {
  cached_tokens_ = event.cached_tokens;
  if (prompt_logprobs_) AppendPromptLogprobs(prompt_logprobs_json_, event.logprobs, names_);
}

void ChatWriter::OnDelta(int, engine::DeltaEvent event, std::string& out) {
  Choice& choice = choices_[static_cast<size_t>(event.choice)];
  completion_tokens_ += static_cast<int64_t>(event.tokens.size());
  if (token_ids_) AppendIds(choice.ids, event.tokens);
  if (logprobs_) {
    for (const engine::TokenLogprob& logprob : event.logprobs) {
      AppendChatLogprob(choice.logprobs, logprob, names_);
    }
  }
  for (AnswerEvent& piece : choice.parser->Push(event.text)) {
    if (stream_) {
      Stream(event.choice, piece, out);
    } else {
      Gather(choice, std::move(piece));
    }
  }
  // The first token shows at once, even if its text is still held back.
  if (stream_ && !choice.role_sent) AppendChunk(event.choice, "", nullptr, out);
}

void ChatWriter::OnDone(int, engine::DoneEvent event, std::string& out) {
  Choice& choice = choices_[static_cast<size_t>(event.choice)];
  for (AnswerEvent& piece : choice.parser->Finish()) {
    if (stream_) {
      Stream(event.choice, piece, out);
    } else {
      Gather(choice, std::move(piece));
    }
  }
  choice.done = std::move(event);
  if (stream_) AppendChunk(choice.done.choice, "{}", &choice.done, out);
}

void ChatWriter::Gather(Choice& choice, AnswerEvent event) {
  if (!Wanted(event)) return;
  switch (event.kind) {
    case AnswerEvent::Kind::kContent:
      choice.content += event.text;
      break;
    case AnswerEvent::Kind::kReasoning:
      choice.reasoning += event.text;
      break;
    case AnswerEvent::Kind::kToolCallStart:
      choice.calls.push_back({CallId(event), std::move(event.text), ""});
      break;
    case AnswerEvent::Kind::kToolCallArguments:
      if (!choice.calls.empty()) choice.calls.back().arguments += event.text;
      break;
  }
}

void ChatWriter::Stream(int index, const AnswerEvent& event, std::string& out) {
  if (!Wanted(event)) return;
  Choice& choice = choices_[static_cast<size_t>(index)];
  std::string delta;
  switch (event.kind) {
    case AnswerEvent::Kind::kContent:
      delta = R"({"content":)";
      AppendJsonString(delta, event.text);
      delta += '}';
      break;
    case AnswerEvent::Kind::kReasoning:
      delta = R"({"reasoning":)";
      AppendJsonString(delta, event.text);
      delta += R"(,"reasoning_content":)";
      AppendJsonString(delta, event.text);
      delta += '}';
      break;
    case AnswerEvent::Kind::kToolCallStart:
      choice.calls.push_back({CallId(event), event.text, ""});
      delta = fmt::format(R"({{"tool_calls":[{{"index":{},"id":)", event.index);
      AppendJsonString(delta, choice.calls.back().id);
      delta += R"(,"type":"function","function":)";
      delta += R"({"name":)";
      AppendJsonString(delta, event.text);
      delta += R"(,"arguments":""}}]})";
      break;
    case AnswerEvent::Kind::kToolCallArguments:
      delta = fmt::format(R"({{"tool_calls":[{{"index":{},"function":{{"arguments":)", event.index);
      AppendJsonString(delta, event.text);
      delta += "}}]}";
      break;
  }
  AppendChunk(index, delta, nullptr, out);
}

// An empty delta sends the role alone. `done` makes it the last chunk of the choice.
void ChatWriter::AppendChunk(int index, std::string_view delta, const engine::DoneEvent* done,
                             std::string& out) {
  Choice& choice = choices_[static_cast<size_t>(index)];
  if (!choice.role_sent) {
    choice.role_sent = true;
    AppendChunk(index, R"({"role":"assistant","content":""})", nullptr, out);
  }
  if (delta.empty()) return;
  const bool only_role = delta.starts_with(R"({"role")");
  out += chunk_head_;
  fmt::format_to(std::back_inserter(out), R"({{"index":{},"delta":{})", index, delta);
  if (only_role) {
    out += R"(,"logprobs":null)";
  } else {
    AppendTokenDetails(choice, out);
  }
  if (done == nullptr) {
    out += R"(,"finish_reason":null}])";
  } else {
    fmt::format_to(std::back_inserter(out), R"(,"finish_reason":"{}","stop_reason":)",
                   FinishName(choice));
    AppendStopReason(out, *done);
    out += "}]";
  }
  if (token_ids_ && !prompt_ids_sent_) {
    prompt_ids_sent_ = true;
    std::string ids;
    AppendIds(ids, prompt_);
    out += R"(,"prompt_token_ids":[)" + ids + "]";
  }
  if (usage_always_) {
    out += R"(,"usage":)";
    AppendUsage(out, UsageSoFar());
  }
  out += "}\n\n";
}

// Log-probabilities and ids that no chunk has carried yet.
void ChatWriter::AppendTokenDetails(Choice& choice, std::string& out) {
  if (logprobs_ && !choice.logprobs.empty()) {
    out += R"(,"logprobs":{"content":[)" + choice.logprobs + "]}";
    choice.logprobs.clear();
  } else {
    out += R"(,"logprobs":null)";
  }
  if (token_ids_) {
    out += R"(,"token_ids":[)" + choice.ids + "]";
    choice.ids.clear();
  }
}

std::string_view ChatWriter::FinishName(const Choice& choice) const {
  const bool called = !choice.calls.empty() && choice.done.reason == engine::FinishReason::kStop;
  return called ? "tool_calls" : FinishReasonName(choice.done.reason);
}

void ChatWriter::AppendMessage(const Choice& choice, std::string& out) const {
  out += R"({"role":"assistant","content":)";
  if (choice.content.empty() && !choice.calls.empty()) {
    out += "null";
  } else {
    AppendJsonString(out, choice.content);
  }
  if (!choice.reasoning.empty()) {
    for (const std::string_view name : {"reasoning", "reasoning_content"}) {
      fmt::format_to(std::back_inserter(out), R"(,"{}":)", name);
      AppendJsonString(out, choice.reasoning);
    }
  }
  out += R"(,"refusal":null)";
  if (!choice.calls.empty()) {
    out += R"(,"tool_calls":[)";
    for (size_t i = 0; i < choice.calls.size(); ++i) {
      const ToolCall& call = choice.calls[i];
      fmt::format_to(std::back_inserter(out), R"({}{{"id":)", i > 0 ? "," : "");
      AppendJsonString(out, call.id);
      out += R"(,"type":"function","function":{"name":)";
      AppendJsonString(out, call.name);
      out += R"(,"arguments":)";
      AppendJsonString(out, call.arguments);
      out += "}}";
    }
    out += ']';
  }
  out += '}';
}

void ChatWriter::Finish(std::string& out) {
  if (stream_) {
    if (usage_at_end_) {
      out += chunk_head_ + R"(],"usage":)";
      AppendUsage(out, UsageSoFar());
      out += "}\n\n";
    }
    out += "data: [DONE]\n\n";
    return;
  }
  AppendHead("chat.completion", out);
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    fmt::format_to(std::back_inserter(out), R"({}{{"index":{},"message":)", i > 0 ? "," : "", i);
    AppendMessage(choice, out);
    AppendTokenDetails(choice, out);
    fmt::format_to(std::back_inserter(out), R"(,"finish_reason":"{}","stop_reason":)",
                   FinishName(choice));
    AppendStopReason(out, choice.done);
    out += '}';
  }
  out += R"(],"usage":)";
  AppendUsage(out, UsageSoFar());
  out += R"(,"system_fingerprint":null,"service_tier":null)";
  if (prompt_logprobs_) out += R"(,"prompt_logprobs":)" + prompt_logprobs_json_;
  if (token_ids_) {
    std::string ids;
    AppendIds(ids, prompt_);
    out += R"(,"prompt_token_ids":[)" + ids + "]";
  }
  out += '}';
}

}  // namespace

std::unique_ptr<AnswerWriter> MakeChatWriter(std::shared_ptr<const ServedModel> model,
                                             const ChatRequest& request, const ChatStart& start,
                                             std::vector<int32_t> prompt, WriterOptions options) {
  return std::make_unique<ChatWriter>(std::move(model), request, start, std::move(prompt),
                                      std::move(options));
}

}  // namespace nibble::server
