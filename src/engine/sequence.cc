#include "engine/sequence.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble::engine {
namespace {

constexpr int32_t kMaxChoices = 1024;
constexpr size_t kMaxStops = 64;
constexpr size_t kMaxStopBytes = 4096;
constexpr size_t kMaxSaltBytes = 1024;

Status CheckRange(const char* field, double value, double low, double high) {
  // The negation also refuses NaN.
  if (!(value >= low && value <= high))
    return Fail(Code::kInvalidArgument, "{} {}: must be between {} and {}", field, value, low,
                high);
  return {};
}

Status CheckToken(const char* field, int64_t token, const RequestLimits& limits) {
  if (token < 0 || token >= limits.vocab_size)
    return Fail(Code::kInvalidArgument, "{}: token id {} must be between 0 and {}", field, token,
                limits.vocab_size - 1);
  return {};
}

Status CheckLength(const Request& request, const RequestLimits& limits) {
  const auto prompt = static_cast<int64_t>(request.tokens.size());
  const int64_t output = request.sampling.max_tokens;
  if (prompt == 0) return Fail(Code::kInvalidArgument, "prompt: must have at least one token");
  if (output < -1) return Fail(Code::kInvalidArgument, "max_tokens {}: must be at least 0", output);
  const int64_t least = output == -1 ? 1 : output;
  if (prompt > limits.max_model_len || least > limits.max_model_len - prompt)
    return Fail(Code::kInvalidArgument,
                "the prompt has {} tokens and max_tokens is {}: together they must not exceed the "
                "context of {} tokens; shorten the prompt or lower max_tokens",
                prompt, output == -1 ? "1 at least" : fmt::format("{}", output),
                limits.max_model_len);
  return {};
}

Status CheckSampling(const SamplingParams& p, const RequestLimits& limits) {
  NIBBLE_TRY(CheckRange("temperature", p.temperature, 0.0, 100.0));
  NIBBLE_TRY(CheckRange("top_p", p.top_p, 0.0, 1.0));
  if (p.top_p == 0.0f) return Fail(Code::kInvalidArgument, "top_p 0: must be above 0");
  NIBBLE_TRY(CheckRange("min_p", p.min_p, 0.0, 1.0));
  if (p.top_k < -1)
    return Fail(Code::kInvalidArgument, "top_k {}: must be -1 or 0 (off) or above", p.top_k);
  NIBBLE_TRY(CheckRange("presence_penalty", p.presence_penalty, -2.0, 2.0));
  NIBBLE_TRY(CheckRange("frequency_penalty", p.frequency_penalty, -2.0, 2.0));
  if (!(p.repetition_penalty > 0.0f) || !std::isfinite(p.repetition_penalty))
    return Fail(Code::kInvalidArgument, "repetition_penalty {}: must be above 0 and finite",
                p.repetition_penalty);
  for (const auto& [token, bias] : p.logit_bias) {
    NIBBLE_TRY(CheckToken("logit_bias", token, limits));
    NIBBLE_TRY(CheckRange("logit_bias", bias, -100.0, 100.0));
  }
  for (const auto& [field, n] :
       {std::pair{"logprobs", p.logprobs}, std::pair{"prompt_logprobs", p.prompt_logprobs}}) {
    if (n < -1 || n > limits.max_logprobs)
      return Fail(Code::kInvalidArgument, "{} {}: must be between 0 and {} (--max-logprobs)", field,
                  n, limits.max_logprobs);
  }
  if (p.n < 1 || p.n > kMaxChoices)
    return Fail(Code::kInvalidArgument, "n {}: must be between 1 and {}", p.n, kMaxChoices);
  return {};
}

Status CheckStops(const SamplingParams& p, const RequestLimits& limits) {
  if (p.stop.size() > kMaxStops)
    return Fail(Code::kInvalidArgument, "stop: {} strings, at most {} are allowed", p.stop.size(),
                kMaxStops);
  if (!p.stop.empty() && !limits.has_tokenizer)
    return Fail(Code::kInvalidArgument, "stop: this engine has no tokenizer; use stop_token_ids");
  for (const std::string& stop : p.stop) {
    if (stop.empty() || stop.size() > kMaxStopBytes)
      return Fail(Code::kInvalidArgument, "stop: a string of {} bytes; 1 to {} are allowed",
                  stop.size(), kMaxStopBytes);
  }
  for (const int32_t token : p.stop_token_ids)
    NIBBLE_TRY(CheckToken("stop_token_ids", token, limits));
  if (p.min_tokens < 0)
    return Fail(Code::kInvalidArgument, "min_tokens {}: must be at least 0", p.min_tokens);
  if (p.max_tokens >= 0 && p.min_tokens > p.max_tokens)
    return Fail(Code::kInvalidArgument, "min_tokens {}: must not exceed max_tokens {}",
                p.min_tokens, p.max_tokens);
  return {};
}

}  // namespace

Status CheckRequest(const Request& request, const RequestLimits& limits) {
  if (request.sink == nullptr) return Fail(Code::kInvalidArgument, "request without a sink");
  NIBBLE_TRY(CheckLength(request, limits));
  for (const int32_t token : request.tokens) NIBBLE_TRY(CheckToken("prompt", token, limits));
  NIBBLE_TRY(CheckSampling(request.sampling, limits));
  NIBBLE_TRY(CheckStops(request.sampling, limits));
  if (request.cache_salt.size() > kMaxSaltBytes)
    return Fail(Code::kInvalidArgument, "cache_salt: {} bytes, at most {} are allowed",
                request.cache_salt.size(), kMaxSaltBytes);
  return {};
}

int64_t ResolveMaxTokens(const Request& request, int64_t max_model_len) {
  if (request.sampling.max_tokens >= 0) return request.sampling.max_tokens;
  return max_model_len - static_cast<int64_t>(request.tokens.size());
}

kernels::TokenCount& TokenCounts::Of(int32_t token) {
  const auto [entry, is_new] = index_.try_emplace(token, counts_.size());
  if (is_new) counts_.push_back({.token = token, .count = 0, .in_prompt = false});
  return counts_[entry->second];
}

void TokenCounts::AddPrompt(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) Of(token).in_prompt = true;
}

void TokenCounts::AddOutput(int32_t token) { ++Of(token).count; }

Sequence::Sequence(ActiveRequest& owner, int32_t choice_index, uint64_t arrival_order,
                   const text::Tokenizer* tokenizer)
    : request(owner),
      choice(choice_index),
      order(arrival_order),
      tokens(owner.request.tokens),
      prompt_length(static_cast<int64_t>(owner.request.tokens.size())),
      text(tokenizer, owner.request.sampling.stop, owner.request.sampling.include_stop_string,
           owner.request.sampling.skip_special_tokens) {
  tokens.reserve(static_cast<size_t>(prompt_length + owner.max_new_tokens));
  cache_key = owner.request.cache_salt;
  if (UsesPenalties(owner.request.sampling)) counts.AddPrompt(tokens);
  pending.choice = choice;
}

int64_t Sequence::ChunkBorder(int64_t prompt_chunk) const {
  return prompt_chunk == 1 ? std::numeric_limits<int64_t>::max()
                           : prompt_length / prompt_chunk * prompt_chunk;
}

int64_t Sequence::ChunkedTokens(int64_t tokens, int64_t prompt_chunk) const {
  if (prompt_chunk == 1 || computed % prompt_chunk != 0) return 0;
  const int64_t end = std::min(computed + tokens, ChunkBorder(prompt_chunk));
  return std::max<int64_t>(0, end / prompt_chunk * prompt_chunk - computed);
}

bool Sequence::awaits_end(int64_t max_model_len) const {
  return unseen > 0 && (generated() >= request.max_new_tokens || length() >= max_model_len);
}

int64_t Sequence::PromptTokens(int64_t tokens) const {
  return std::clamp<int64_t>(prompt_length - computed, 0, tokens);
}

int64_t Sequence::FormBorder(int64_t prompt_chunk, bool prompts_apart) const {
  const int64_t border = ChunkBorder(prompt_chunk);
  return prompts_apart ? std::min(border, prompt_length) : border;
}

bool Sequence::collects_prompt_logprobs() const {
  return choice == 0 && request.request.sampling.prompt_logprobs >= 0 &&
         request.prompt_rows_done < prompt_length - 1;
}

}  // namespace nibble::engine
