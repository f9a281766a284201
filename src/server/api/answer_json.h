// Pieces of JSON that the answers of several APIs share: usage, token ids, log-probabilities, ends.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "text/tokenizer.h"

namespace nibble::server {

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  std::optional<int64_t> cached_tokens;  // reported when set
};

void AppendUsage(std::string& out, const Usage& usage);

// "1,2,3" (no brackets), with a comma in front when `out` already ends in an element.
void AppendIds(std::string& list, std::span<const int32_t> ids);

// How tokens are named in log-probabilities: their text, or "token_id:N".
class TokenNames {
 public:
  TokenNames(const text::Tokenizer& tokenizer, bool as_ids)
      : tokenizer_(tokenizer), as_ids_(as_ids) {}
  std::string Name(int32_t id) const;   // valid UTF-8, U+FFFD for parts of code points
  std::string Bytes(int32_t id) const;  // what the token really stands for

 private:
  const text::Tokenizer& tokenizer_;
  const bool as_ids_;
};

// One element of a chat answer's logprobs.content.
void AppendChatLogprob(std::string& list, const engine::TokenLogprob& logprob,
                       const TokenNames& names);

// vLLM's prompt_logprobs: a list of null or {"id": {logprob, rank, decoded_token}}.
void AppendPromptLogprobs(std::string& out,
                          const std::vector<std::optional<engine::TokenLogprob>>& logprobs,
                          const TokenNames& names);

std::string_view FinishReasonName(engine::FinishReason reason);
// The stop string, the stop token id, or null.
void AppendStopReason(std::string& out, const engine::DoneEvent& done);

// A comma, unless the list is empty.
void AppendComma(std::string& list);

}  // namespace nibble::server
