// The answers of /v1/completions, whole and streamed. Choice i of prompt p has index p * n + i.
#include <fmt/format.h>

#include <iterator>

#include "server/api/answer_json.h"
#include "server/api/answer_writer.h"
#include "server/api/ids.h"
#include "server/api/json_text.h"

namespace nibble::server {
namespace {

// The four parallel lists of a completion's logprobs, as JSON without brackets.
class LogprobLists {
 public:
  void Append(const engine::TokenLogprob& logprob, const TokenNames& names);
  void AppendFirst(int32_t token, const TokenNames& names);  // of a prompt: it has no probability
  bool empty() const { return tokens_.empty(); }
  std::string Take();  // the object; the offsets go on

 private:
  void AppendToken(std::string_view name);

  std::string offsets_;
  std::string logprobs_;
  std::string tokens_;
  std::string tops_;
  size_t offset_ = 0;  // code points so far
};

void LogprobLists::AppendToken(std::string_view name) {
  AppendComma(offsets_);
  fmt::format_to(std::back_inserter(offsets_), "{}", offset_);
  offset_ += CountCodePoints(name);
  AppendComma(tokens_);
  AppendJsonString(tokens_, name);
}

void LogprobLists::AppendFirst(int32_t token, const TokenNames& names) {
  AppendComma(logprobs_);
  AppendComma(tops_);
  logprobs_ += "null";
  tops_ += "null";
  AppendToken(names.Name(token));
}

// Tokens with equal text share a key: the larger value stays, but the token's own always does,
// because clients compare it with the largest to see whether the token was the greedy one.
void LogprobLists::Append(const engine::TokenLogprob& logprob, const TokenNames& names) {
  std::vector<std::pair<std::string, float>> top;
  const std::string own = names.Name(logprob.token);
  top.emplace_back(own, logprob.logprob);
  for (const auto& [token, value] : logprob.top) {
    if (token == logprob.token) continue;
    std::string name = names.Name(token);
    bool known = false;
    for (const auto& entry : top) known = known || entry.first == name;
    if (!known)
      top.emplace_back(std::move(name), value);  // best first: the first seen is the larger
  }
  AppendComma(logprobs_);
  AppendJsonFloat(logprobs_, logprob.logprob);
  AppendComma(tops_);
  tops_ += '{';
  for (size_t i = 0; i < top.size(); ++i) {
    if (i > 0) tops_ += ',';
    AppendJsonString(tops_, top[i].first);
    tops_ += ':';
    AppendJsonFloat(tops_, top[i].second);
  }
  tops_ += '}';
  AppendToken(own);
}

std::string LogprobLists::Take() {
  std::string object = R"({"text_offset":[)" + offsets_ + R"(],"token_logprobs":[)" + logprobs_ +
                       R"(],"tokens":[)" + tokens_ + R"(],"top_logprobs":[)" + tops_ + "]}";
  offsets_.clear();
  logprobs_.clear();
  tokens_.clear();
  tops_.clear();
  return object;
}

// In a stream: what no chunk has carried yet. Otherwise: everything.
struct Choice {
  std::string text;
  LogprobLists logprobs;
  std::string ids;
  bool started = false;
  engine::DoneEvent done;
};

struct PromptState {
  std::vector<int32_t> tokens;
  std::string text;  // for echo
  std::string prompt_logprobs;
  bool seen = false;
  int64_t cached = 0;
};

class CompletionWriter final : public AnswerWriter {
 public:
  CompletionWriter(std::shared_ptr<const ServedModel> model, const CompletionRequest& request,
                   std::vector<std::vector<int32_t>> prompts, std::vector<std::string> prompt_texts,
                   WriterOptions options);

  void OnPrompt(int prompt, engine::PromptEvent event, std::string& out) override;
  void OnDelta(int prompt, engine::DeltaEvent event, std::string& out) override;
  void OnDone(int prompt, engine::DoneEvent event, std::string& out) override;
  void Finish(std::string& out) override;

 private:
  size_t Index(int prompt, int32_t choice) const {
    return static_cast<size_t>(prompt) * static_cast<size_t>(n_) + static_cast<size_t>(choice);
  }
  void AppendHead(std::string& out) const;
  void AppendChoice(size_t index, bool ended, std::string& out);
  void AppendChunk(size_t index, bool ended, std::string& out);
  Usage UsageSoFar() const;

  const std::shared_ptr<const ServedModel> model_;
  const WriterOptions options_;
  const TokenNames names_;
  const int64_t created_ = UnixSeconds();
  const int64_t n_;
  const bool stream_;
  const bool echo_;
  const bool score_only_;  // max_tokens 0
  const bool logprobs_;
  const bool token_ids_;
  const bool prompt_logprobs_;
  const bool usage_at_end_;
  const bool usage_always_;

  std::vector<PromptState> prompts_;
  std::vector<Choice> choices_;
  int64_t completion_tokens_ = 0;
};

CompletionWriter::CompletionWriter(std::shared_ptr<const ServedModel> model,
                                   const CompletionRequest& request,
                                   std::vector<std::vector<int32_t>> prompts,
                                   std::vector<std::string> prompt_texts, WriterOptions options)
    : model_(std::move(model)),
      options_(std::move(options)),
      names_(model_->tokenizer(), request.return_tokens_as_token_ids),
      n_(request.n),
      stream_(request.stream),
      echo_(request.echo),
      score_only_(request.max_tokens == 0),
      logprobs_(request.logprobs.has_value()),
      token_ids_(request.return_token_ids),
      prompt_logprobs_(request.prompt_logprobs.has_value()),
      usage_at_end_(request.include_usage.value_or(false)),
      usage_always_(request.continuous_usage_stats && usage_at_end_),
      prompts_(prompts.size()),
      choices_(prompts.size() * static_cast<size_t>(request.n)) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    prompts_[i].tokens = std::move(prompts[i]);
    prompts_[i].text = std::move(prompt_texts[i]);
  }
}

void CompletionWriter::AppendHead(std::string& out) const {
  out += R"({"id":)";
  AppendJsonString(out, options_.id);
  fmt::format_to(std::back_inserter(out), R"(,"object":"text_completion","created":{},"model":)",
                 created_);
  AppendJsonString(out, model_->name());
  out += R"(,"choices":[)";
}

Usage CompletionWriter::UsageSoFar() const {
  Usage usage{0, completion_tokens_, std::nullopt};
  int64_t cached = 0;
  for (const PromptState& prompt : prompts_) {
    usage.prompt_tokens += static_cast<int64_t>(prompt.tokens.size());
    cached += prompt.cached;
  }
  if (options_.cached_details) usage.cached_tokens = cached;
  return usage;
}

void CompletionWriter::OnPrompt(int prompt, engine::PromptEvent event, std::string&) {
  PromptState& state = prompts_[static_cast<size_t>(prompt)];
  if (state.seen) return;
  state.seen = true;
  state.cached = event.cached_tokens;
  if (prompt_logprobs_) AppendPromptLogprobs(state.prompt_logprobs, event.logprobs, names_);
  if (!echo_) return;
  for (int64_t i = 0; i < n_; ++i) {
    Choice& choice = choices_[Index(prompt, static_cast<int32_t>(i))];
    choice.text = state.text;
    if (!logprobs_) continue;
    for (size_t t = 0; t < event.logprobs.size() && t < state.tokens.size(); ++t) {
      if (event.logprobs[t]) {
        choice.logprobs.Append(*event.logprobs[t], names_);
      } else {
        choice.logprobs.AppendFirst(state.tokens[t], names_);
      }
    }
  }
}

void CompletionWriter::OnDelta(int prompt, engine::DeltaEvent event, std::string& out) {
  if (score_only_) return;
  const size_t index = Index(prompt, event.choice);
  Choice& choice = choices_[index];
  completion_tokens_ += static_cast<int64_t>(event.tokens.size());
  choice.text += event.text;
  if (token_ids_) AppendIds(choice.ids, event.tokens);
  if (logprobs_) {
    for (const engine::TokenLogprob& logprob : event.logprobs)
      choice.logprobs.Append(logprob, names_);
  }
  // The first token shows at once, even if its text is still held back.
  const bool first = !choice.started && !event.tokens.empty();
  if (stream_ && (first || !choice.text.empty())) AppendChunk(index, false, out);
}

void CompletionWriter::OnDone(int prompt, engine::DoneEvent event, std::string& out) {
  const size_t index = Index(prompt, event.choice);
  choices_[index].done = std::move(event);
  if (stream_) AppendChunk(index, true, out);
}

void CompletionWriter::AppendChoice(size_t index, bool ended, std::string& out) {
  Choice& choice = choices_[index];
  PromptState& prompt = prompts_[index / static_cast<size_t>(n_)];
  fmt::format_to(std::back_inserter(out), R"({{"index":{},"text":)", index);
  AppendJsonString(out, choice.text);
  choice.text.clear();
  out += R"(,"logprobs":)";
  out += logprobs_ && !choice.logprobs.empty() ? choice.logprobs.Take() : "null";
  if (ended) {
    fmt::format_to(std::back_inserter(out), R"(,"finish_reason":"{}","stop_reason":)",
                   FinishReasonName(choice.done.reason));
    AppendStopReason(out, choice.done);
  } else {
    out += R"(,"finish_reason":null,"stop_reason":null)";
  }
  if (prompt_logprobs_) out += R"(,"prompt_logprobs":)" + prompt.prompt_logprobs;
  if (token_ids_) {
    out += R"(,"token_ids":[)" + choice.ids + "]";
    choice.ids.clear();
    if (!choice.started) {
      std::string ids;
      AppendIds(ids, prompt.tokens);
      out += R"(,"prompt_token_ids":[)" + ids + "]";
    }
  }
  choice.started = true;
  out += '}';
}

void CompletionWriter::AppendChunk(size_t index, bool ended, std::string& out) {
  out += "data: ";
  AppendHead(out);
  AppendChoice(index, ended, out);
  out += ']';
  if (usage_always_) {
    out += R"(,"usage":)";
    AppendUsage(out, UsageSoFar());
  }
  out += "}\n\n";
}

void CompletionWriter::Finish(std::string& out) {
  if (stream_) {
    if (usage_at_end_) {
      out += "data: ";
      AppendHead(out);
      out += R"(],"usage":)";
      AppendUsage(out, UsageSoFar());
      out += "}\n\n";
    }
    out += "data: [DONE]\n\n";
    return;
  }
  AppendHead(out);
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (i > 0) out += ',';
    AppendChoice(i, true, out);
  }
  out += R"(],"usage":)";
  AppendUsage(out, UsageSoFar());
  out += R"(,"system_fingerprint":null})";
}

}  // namespace

std::unique_ptr<AnswerWriter> MakeCompletionWriter(std::shared_ptr<const ServedModel> model,
                                                   const CompletionRequest& request,
                                                   std::vector<std::vector<int32_t>> prompts,
                                                   std::vector<std::string> prompt_texts,
                                                   WriterOptions options) {
  return std::make_unique<CompletionWriter>(std::move(model), request, std::move(prompts),
                                            std::move(prompt_texts), std::move(options));
}

}  // namespace nibble::server
