#include "server/api/answer_json.h"

#include <fmt/format.h>

#include <iterator>

#include "server/api/json_text.h"

namespace nibble::server {

void AppendComma(std::string& list) {
  if (!list.empty()) list += ',';
}

void AppendUsage(std::string& out, const Usage& usage) {
  fmt::format_to(
      std::back_inserter(out), R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{})",
      usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens);
  if (usage.cached_tokens) {
    fmt::format_to(std::back_inserter(out), R"(,"prompt_tokens_details":{{"cached_tokens":{}}})",
                   *usage.cached_tokens);
  }
  out += '}';
}

void AppendIds(std::string& list, std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    AppendComma(list);
    fmt::format_to(std::back_inserter(list), "{}", id);
  }
}

std::string TokenNames::Bytes(int32_t id) const {
  std::string bytes = tokenizer_.TokenBytes(id);
  return bytes.empty() ? tokenizer_.TokenText(id) : bytes;
}

std::string TokenNames::Name(int32_t id) const {
  return as_ids_ ? fmt::format("token_id:{}", id) : ValidUtf8(Bytes(id));
}

namespace {

void AppendNamedLogprob(std::string& out, int32_t token, float logprob, const TokenNames& names) {
  out += R"({"token":)";
  AppendJsonString(out, names.Name(token));
  out += R"(,"logprob":)";
  AppendJsonFloat(out, logprob);
  out += R"(,"bytes":[)";
  const std::string bytes = names.Bytes(token);
  for (size_t i = 0; i < bytes.size(); ++i) {
    fmt::format_to(std::back_inserter(out), "{}{}", i > 0 ? "," : "",
                   static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

void AppendPromptLogprob(std::string& out, int32_t token, float logprob, int32_t rank,
                         const TokenNames& names) {
  fmt::format_to(std::back_inserter(out), R"("{}":{{"logprob":)", token);
  AppendJsonFloat(out, logprob);
  fmt::format_to(std::back_inserter(out), R"(,"rank":{},"decoded_token":)", rank);
  AppendJsonString(out, names.Name(token));
  out += '}';
}

}  // namespace

void AppendChatLogprob(std::string& list, const engine::TokenLogprob& logprob,
                       const TokenNames& names) {
  AppendComma(list);
  AppendNamedLogprob(list, logprob.token, logprob.logprob, names);
  list += R"(,"top_logprobs":[)";
  for (size_t i = 0; i < logprob.top.size(); ++i) {
    if (i > 0) list += ',';
    AppendNamedLogprob(list, logprob.top[i].first, logprob.top[i].second, names);
    list += '}';
  }
  list += "]}";
}

void AppendPromptLogprobs(std::string& out,
                          const std::vector<std::optional<engine::TokenLogprob>>& logprobs,
                          const TokenNames& names) {
  out += '[';
  for (size_t i = 0; i < logprobs.size(); ++i) {
    if (i > 0) out += ',';
    if (!logprobs[i]) {
      out += "null";
      continue;
    }
    const engine::TokenLogprob& own = *logprobs[i];
    out += '{';
    AppendPromptLogprob(out, own.token, own.logprob, own.rank, names);
    int32_t rank = 0;
    for (const auto& [token, logprob] : own.top) {
      ++rank;
      if (token == own.token) continue;
      out += ',';
      AppendPromptLogprob(out, token, logprob, rank, names);
    }
    out += '}';
  }
  out += ']';
}

std::string_view FinishReasonName(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return "stop";
    case engine::FinishReason::kLength:
      return "length";
    case engine::FinishReason::kAbort:
      return "abort";
    case engine::FinishReason::kError:
      return "error";
  }
  return "error";
}

void AppendStopReason(std::string& out, const engine::DoneEvent& done) {
  if (!done.stop_string.empty()) {
    AppendJsonString(out, done.stop_string);
  } else if (done.stop_token) {
    fmt::format_to(std::back_inserter(out), "{}", *done.stop_token);
  } else {
    out += "null";
  }
}

}  // namespace nibble::server
