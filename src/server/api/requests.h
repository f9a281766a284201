// The typed requests: what is left of a JSON body once every field has been checked. Values that
// depend on the model (token ids, lengths, the logprobs limit) are checked when the request is
// prepared.
#pragma once

#include <fmt/core.h>

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::server {

// Fields of every generating API. An absent optional means the model's default.
struct GenerationRequest {
  std::string model;  // empty: whatever is served
  std::optional<int64_t> max_tokens;
  std::optional<int64_t> max_completion_tokens;  // wins over max_tokens
  int64_t min_tokens = 0;
  int64_t n = 1;

  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::vector<std::pair<int64_t, double>> logit_bias;  // token id, bias
  std::optional<int64_t> seed;

  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  bool skip_special_tokens = true;

  std::optional<int64_t> prompt_logprobs;
  bool return_token_ids = false;
  bool return_tokens_as_token_ids = false;
  std::optional<bool> add_special_tokens;

  bool stream = false;
  std::optional<bool> include_usage;
  bool continuous_usage_stats = false;
  bool has_stream_options = false;

  std::string cache_salt;
  std::string request_id;
};

struct ChatRequest : GenerationRequest {
  // As templates read them: content is a string, tool arguments are objects, reasoning has both
  // names.
  boost::json::array messages;
  boost::json::array tools;
  boost::json::array documents;
  enum class ToolChoice { kUnset, kAuto, kNone } tool_choice = ToolChoice::kUnset;
  bool parallel_tool_calls = true;
  bool logprobs = false;
  std::optional<int64_t> top_logprobs;
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  boost::json::object chat_template_kwargs;
  std::string reasoning_effort;
  bool include_reasoning = true;
};

using Prompt = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest : GenerationRequest {
  std::vector<Prompt> prompts;
  bool echo = false;
  std::optional<int64_t> logprobs;
};

// /tokenize: a prompt or messages; `content` is llama-server's name of the prompt.
struct TokenizeRequest : ChatRequest {
  std::optional<std::string> prompt;
  std::optional<std::string> content;
  bool return_token_strs = false;
  bool with_pieces = false;
  bool parse_special = true;
};

struct DetokenizeRequest : GenerationRequest {
  std::optional<std::vector<int32_t>> tokens;
};

}  // namespace nibble::server
