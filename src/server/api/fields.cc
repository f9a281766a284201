#include "server/api/fields.h"

#include <cmath>
#include <limits>
#include <vector>

#include "server/api/json_text.h"
#include "server/api/messages.h"

namespace nibble::server {
namespace {

namespace json = boost::json;
using Setter = std::function<ApiStatus(const json::value&, GenerationRequest&)>;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr int64_t kMinInt64 = std::numeric_limits<int64_t>::min();

// ---- Values ----

ApiResult<int64_t> ReadInt(std::string_view name, const json::value& value, int64_t low,
                           int64_t high) {
  std::optional<int64_t> number;
  bool too_large = false;
  if (value.is_int64()) {
    number = value.get_int64();
  } else if (value.is_uint64()) {
    too_large = true;
  } else if (value.is_double()) {
    // 16.0 is an integer to JavaScript and to most JSON writers.
    const double real = value.get_double();
    if (std::trunc(real) == real) {
      too_large = std::abs(real) > 9007199254740992.0;
      if (!too_large) number = static_cast<int64_t>(real);
    }
  }
  if (!number && !too_large) return Refuse(std::string(name), "{}: must be an integer", name);
  if (too_large || *number < low || *number > high) {
    if (high == kMaxInt64 && low == kMinInt64) {
      return Refuse(std::string(name), "{}: must fit in 64 bits", name);
    }
    return Refuse(std::string(name), "{}: must be between {} and {}, not {}", name, low, high,
                  Quote(json::serialize(value)));
  }
  return *number;
}

struct RealRange {
  double low;
  double high;
  bool open_low = false;  // low itself is not allowed
};

std::string Describe(const RealRange& range) {
  const std::string low = fmt::format("{} {}", range.open_low ? "above" : "at least", range.low);
  return std::isinf(range.high) ? low : fmt::format("{} and at most {}", low, range.high);
}

ApiResult<double> ReadReal(std::string_view name, const json::value& value,
                           const RealRange& range) {
  if (!value.is_number()) return Refuse(std::string(name), "{}: must be a number", name);
  const double number = value.to_number<double>();
  const bool low_enough = number <= range.high && std::isfinite(number);
  const bool high_enough = range.open_low ? number > range.low : number >= range.low;
  if (!low_enough || !high_enough) {
    return Refuse(std::string(name), "{}: must be {}, not {}", name, Describe(range), number);
  }
  return number;
}

ApiResult<std::vector<int32_t>> ReadTokenIds(std::string_view name, const json::value& value) {
  if (!value.is_array()) return Refuse(std::string(name), "{}: must be a list of token ids", name);
  std::vector<int32_t> ids;
  ids.reserve(value.get_array().size());
  for (const json::value& item : value.get_array()) {
    auto id = ReadInt(name, item, 0, kMaxInt32);
    if (!id) return tl::unexpected(std::move(id).error());
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

// ---- Kinds of rows ----

template <typename C, typename T>  // T: bool or std::optional<bool>
Field Bool(std::string_view name, unsigned apis, T C::* member) {
  return {name,
          apis,
          "boolean",
          "",
          Treatment::kUsed,
          [=](const json::value& value, GenerationRequest& request) -> ApiStatus {
            if (!value.is_bool())
              return Refuse(std::string(name), "{}: must be true or false", name);
            static_cast<C&>(request).*member = value.get_bool();
            return {};
          }};
}

template <typename C, typename T>  // T: int64_t or std::optional<int64_t>
Field Int(std::string_view name, unsigned apis, T C::* member, int64_t low, int64_t high) {
  return {name,
          apis,
          "integer",
          fmt::format("{} to {}", low, high),
          Treatment::kUsed,
          [=](const json::value& value, GenerationRequest& request) -> ApiStatus {
            auto number = ReadInt(name, value, low, high);
            if (!number) return tl::unexpected(std::move(number).error());
            static_cast<C&>(request).*member = *number;
            return {};
          }};
}

template <typename C, typename T>  // T: double or std::optional<double>
Field Real(std::string_view name, unsigned apis, T C::* member, RealRange range) {
  return {name,
          apis,
          "number",
          Describe(range),
          Treatment::kUsed,
          [=](const json::value& value, GenerationRequest& request) -> ApiStatus {
            auto number = ReadReal(name, value, range);
            if (!number) return tl::unexpected(std::move(number).error());
            static_cast<C&>(request).*member = *number;
            return {};
          }};
}

template <typename C, typename T>  // T: std::string or std::optional<std::string>
Field String(std::string_view name, unsigned apis, T C::* member) {
  return {name,
          apis,
          "string",
          "",
          Treatment::kUsed,
          [=](const json::value& value, GenerationRequest& request) -> ApiStatus {
            if (!value.is_string()) return Refuse(std::string(name), "{}: must be a string", name);
            static_cast<C&>(request).*member = std::string(value.get_string());
            return {};
          }};
}

// set(value, request of type C) for everything that is not a plain value.
template <typename C, typename Set>
Field Custom(std::string_view name, unsigned apis, std::string_view type, std::string range,
             Set set) {
  return {name,
          apis,
          type,
          std::move(range),
          Treatment::kUsed,
          [set](const json::value& value, GenerationRequest& request) -> ApiStatus {
            return set(value, static_cast<C&>(request));
          }};
}

Field Ignored(std::string_view name, unsigned apis) {
  return {name,
          apis,
          "any",
          "",
          Treatment::kIgnored,
          [](const json::value&, GenerationRequest&) -> ApiStatus { return {}; }};
}

// Refused unless the value is one of those that ask for nothing.
Field Refused(std::string_view name, unsigned apis, std::string_view why,
              std::vector<json::value> harmless = {}) {
  return {name,
          apis,
          "any",
          std::string(why),
          Treatment::kRefused,
          [=](const json::value& value, GenerationRequest&) -> ApiStatus {
            for (const json::value& nothing : harmless) {
              if (value == nothing) return {};
            }
            return Refuse(std::string(name), "{}: {}", name, why);
          }};
}

// ---- Fields with a form of their own ----

ApiStatus SetStop(const json::value& value, GenerationRequest& request) {
  json::array list;
  if (value.is_string()) {
    list.push_back(value);
  } else if (value.is_array()) {
    list = value.get_array();
  } else {
    return Refuse("stop", "stop: must be a string or a list of strings");
  }
  if (list.size() > kMaxStopStrings) {
    return Refuse("stop", "stop: has {} strings; at most {} are allowed", list.size(),
                  kMaxStopStrings);
  }
  for (const json::value& item : list) {
    if (!item.is_string()) return Refuse("stop", "stop: every entry must be a string");
    const std::string_view text = item.get_string();
    if (text.empty() || text.size() > kMaxStopStringBytes) {
      return Refuse("stop", "stop: every string must have 1 to {} bytes", kMaxStopStringBytes);
    }
    request.stop.emplace_back(text);
  }
  return {};
}

ApiStatus SetStopTokenIds(const json::value& value, GenerationRequest& request) {
  auto ids = ReadTokenIds("stop_token_ids", value);
  if (!ids) return tl::unexpected(std::move(ids).error());
  if (ids->size() > 1024)
    return Refuse("stop_token_ids", "stop_token_ids: at most 1024 are allowed");
  request.stop_token_ids = *std::move(ids);
  return {};
}

ApiStatus SetLogitBias(const json::value& value, GenerationRequest& request) {
  if (!value.is_object()) {
    return Refuse("logit_bias", "logit_bias: must be an object of token ids and biases");
  }
  if (value.get_object().size() > 4096) {
    return Refuse("logit_bias", "logit_bias: at most 4096 entries are allowed");
  }
  for (const auto& [key, bias] : value.get_object()) {
    const bool digits = !key.empty() && key.size() <= 10 &&
                        key.find_first_not_of("0123456789") == json::string_view::npos;
    if (!digits) {
      return Refuse("logit_bias", "logit_bias: {} is not a token id", Quote(key));
    }
    auto number = ReadReal("logit_bias", bias, {-100.0, 100.0});
    if (!number) return tl::unexpected(std::move(number).error());
    request.logit_bias.emplace_back(std::stoll(std::string(key)), *number);
  }
  return {};
}

ApiStatus SetStreamOptions(const json::value& value, GenerationRequest& request) {
  if (!value.is_object()) return Refuse("stream_options", "stream_options: must be an object");
  request.has_stream_options = true;
  for (const auto& [key, option] : value.get_object()) {
    if (option.is_null()) continue;
    const bool usage = key == "include_usage";
    if (!usage && key != "continuous_usage_stats") continue;
    if (!option.is_bool()) {
      return Refuse("stream_options", "stream_options.{}: must be true or false",
                    std::string_view(key));
    }
    if (usage) {
      request.include_usage = option.get_bool();
    } else {
      request.continuous_usage_stats = option.get_bool();
    }
  }
  return {};
}

ApiStatus SetMessages(const json::value& value, ChatRequest& request) {
  auto messages = NormalizeMessages(value);
  if (!messages) return tl::unexpected(std::move(messages).error());
  request.messages = *std::move(messages);
  return {};
}

ApiStatus SetTools(const json::value& value, ChatRequest& request) {
  auto tools = CheckTools(value);
  if (!tools) return tl::unexpected(std::move(tools).error());
  request.tools = *std::move(tools);
  return {};
}

ApiStatus SetToolChoice(const json::value& value, ChatRequest& request) {
  if (value == "none") {
    request.tool_choice = ChatRequest::ToolChoice::kNone;
  } else if (value == "auto") {
    request.tool_choice = ChatRequest::ToolChoice::kAuto;
  } else if (value == "required" || value.is_object()) {
    return Refuse("tool_choice",
                  "tool_choice: a forced call needs structured output, which is not there yet; use "
                  "\"auto\" or \"none\"");
  } else {
    return Refuse("tool_choice", "tool_choice: must be \"none\" or \"auto\"");
  }
  return {};
}

ApiStatus SetDocuments(const json::value& value, ChatRequest& request) {
  if (!value.is_array()) return Refuse("documents", "documents: must be a list of objects");
  for (const json::value& document : value.get_array()) {
    if (!document.is_object()) return Refuse("documents", "documents: must be a list of objects");
  }
  request.documents = value.get_array();
  return {};
}

ApiStatus SetTemplateKwargs(const json::value& value, ChatRequest& request) {
  constexpr std::string_view kOwn[] = {"chat_template",
                                       "tokenize",
                                       "messages",
                                       "tools",
                                       "documents",
                                       "add_generation_prompt",
                                       "continue_final_message"};
  if (!value.is_object()) {
    return Refuse("chat_template_kwargs", "chat_template_kwargs: must be an object");
  }
  for (const auto& [key, unused] : value.get_object()) {
    for (const std::string_view own : kOwn) {
      if (key != own) continue;
      return Refuse("chat_template_kwargs", "chat_template_kwargs: may not set {}", own);
    }
  }
  request.chat_template_kwargs = value.get_object();
  return {};
}

ApiStatus SetReasoningEffort(const json::value& value, ChatRequest& request) {
  constexpr std::string_view kEfforts[] = {"none", "minimal", "low", "medium",
                                           "high", "xhigh",   "max"};
  for (const std::string_view effort : kEfforts) {
    if (value.is_string() && value.get_string() == effort) {
      request.reasoning_effort = effort;
      return {};
    }
  }
  return Refuse("reasoning_effort",
                "reasoning_effort: must be one of none, minimal, low, medium, high, xhigh, max");
}

ApiStatus SetResponseFormat(const json::value& value) {
  const json::value* type = value.is_object() ? value.get_object().if_contains("type") : nullptr;
  if (type == nullptr || !type->is_string()) {
    return Refuse("response_format", "response_format: must be an object with a type");
  }
  if (*type == "text") return {};
  return Refuse("response_format",
                "response_format: type {} needs structured output, which is not there yet; only "
                "\"text\" is supported",
                Quote(type->get_string()));
}

// A string, a list of strings, a list of token ids, or a list of lists of token ids.
ApiStatus SetPrompt(const json::value& value, CompletionRequest& request) {
  if (value.is_string()) {
    request.prompts.emplace_back(std::string(value.get_string()));
    return {};
  }
  constexpr std::string_view kForms =
      "prompt: must be a string, a list of strings, a list of token ids or a list of such lists, "
      "and "
      "not empty";
  if (!value.is_array() || value.get_array().empty()) return Refuse("prompt", "{}", kForms);
  const json::array& list = value.get_array();
  if (list[0].is_number()) {
    auto ids = ReadTokenIds("prompt", value);
    if (!ids) return tl::unexpected(std::move(ids).error());
    request.prompts.emplace_back(*std::move(ids));
    return {};
  }
  if (list.size() > kMaxPrompts) {
    return Refuse("prompt", "prompt: has {} prompts; at most {} are allowed in one request",
                  list.size(), kMaxPrompts);
  }
  for (const json::value& item : list) {
    if (item.is_string() && list[0].is_string()) {
      request.prompts.emplace_back(std::string(item.get_string()));
    } else if (item.is_array() && !item.get_array().empty() && list[0].is_array()) {
      auto ids = ReadTokenIds("prompt", item);
      if (!ids) return tl::unexpected(std::move(ids).error());
      request.prompts.emplace_back(*std::move(ids));
    } else {
      return Refuse("prompt", "{}", kForms);
    }
  }
  return {};
}

ApiStatus SetDetokenizeTokens(const json::value& value, DetokenizeRequest& request) {
  auto ids = ReadTokenIds("tokens", value);
  if (!ids) return tl::unexpected(std::move(ids).error());
  request.tokens = *std::move(ids);
  return {};
}

// ---- The table ----

constexpr std::string_view kNotYet = "is not there yet; leave the field out";
constexpr std::string_view kStructured = "needs structured output, which is not there yet";
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<Field> MakeTable() {
  using G = GenerationRequest;
  using C = ChatRequest;
  using P = CompletionRequest;
  using T = TokenizeRequest;
  const json::object no_object;
  const json::array no_list;
  return {
      String("model", kAllApis, &G::model),

      // What to answer.
      Custom<C>("messages", kChat | kTokenize, "list of messages", "at least one", SetMessages),
      Custom<C>("tools", kChat | kTokenize, "list of tools", "at least one", SetTools),
      Custom<C>("tool_choice", kChat, "string", "none, auto", SetToolChoice),
      Bool("parallel_tool_calls", kChat, &C::parallel_tool_calls),
      Custom<C>("documents", kChat | kTokenize, "list of objects", "", SetDocuments),
      Bool("add_generation_prompt", kChat | kTokenize, &C::add_generation_prompt),
      Bool("continue_final_message", kChat | kTokenize, &C::continue_final_message),
      Custom<C>("chat_template_kwargs", kChat | kTokenize, "object", "", SetTemplateKwargs),
      Refused("chat_template", kChat | kTokenize,
              "templates of requests are not trusted; the server's own is used"),
      Custom<C>("reasoning_effort", kChat, "string", "none to max", SetReasoningEffort),
      Bool("include_reasoning", kChat, &C::include_reasoning),
      Custom<P>("prompt", kCompletions, "text or token ids, one or a list", "", SetPrompt),
      String("prompt", kTokenize, &T::prompt),
      String("content", kTokenize, &T::content),
      Custom<DetokenizeRequest>("tokens", kDetokenize, "list of token ids", "",
                                SetDetokenizeTokens),
      Bool("echo", kCompletions, &P::echo),
      Refused("echo", kChat, kNotYet, {false}),
      Refused("suffix", kCompletions, "is not supported", {""}),
      Bool("add_special_tokens", kGenerate | kTokenize, &G::add_special_tokens),
      Bool("add_special", kTokenize, &G::add_special_tokens),
      Bool("parse_special", kTokenize, &T::parse_special),
      Bool("return_token_strs", kTokenize, &T::return_token_strs),
      Bool("with_pieces", kTokenize, &T::with_pieces),

      // How much.
      Int("max_tokens", kChat, &G::max_tokens, 1, kMaxInt32),
      Int("max_tokens", kCompletions, &G::max_tokens, 0, kMaxInt32),
      Int("max_completion_tokens", kChat, &G::max_completion_tokens, 1, kMaxInt32),
      Int("max_completion_tokens", kCompletions, &G::max_completion_tokens, 0, kMaxInt32),
      Int("min_tokens", kGenerate, &G::min_tokens, 0, kMaxInt32),
      Int("n", kGenerate, &G::n, 1, kMaxChoices),
      Refused("best_of", kGenerate, "only 1 is supported", {1}),

      // How to choose tokens.
      Real("temperature", kGenerate, &G::temperature, {0.0, 2.0}),
      Real("top_p", kGenerate, &G::top_p, {0.0, 1.0, true}),
      Int("top_k", kGenerate, &G::top_k, -1, kMaxInt32),
      Real("min_p", kGenerate, &G::min_p, {0.0, 1.0}),
      Real("presence_penalty", kGenerate, &G::presence_penalty, {-2.0, 2.0}),
      Real("frequency_penalty", kGenerate, &G::frequency_penalty, {-2.0, 2.0}),
      Real("repetition_penalty", kGenerate, &G::repetition_penalty, {0.0, kInfinity, true}),
      Int("seed", kGenerate, &G::seed, kMinInt64, kMaxInt64),
      Custom<G>("logit_bias", kGenerate, "object", "-100 to 100", SetLogitBias),
      Refused("allowed_token_ids", kGenerate, kNotYet, {no_list}),
      Refused("bad_words", kGenerate, kNotYet, {no_list}),
      Refused("use_beam_search", kGenerate, "is not supported", {false}),
      Refused("length_penalty", kGenerate, "is for beam search, which is not supported", {1, 1.0}),
      Refused("thinking_token_budget", kChat, kNotYet, {-1}),
      Refused("repetition_detection", kGenerate, kNotYet),

      // When to stop.
      Custom<G>("stop", kGenerate, "string or list of strings",
                fmt::format("at most {}", kMaxStopStrings), SetStop),
      Custom<G>("stop_token_ids", kGenerate, "list of token ids", "", SetStopTokenIds),
      Bool("include_stop_str_in_output", kGenerate, &G::include_stop_str_in_output),
      Bool("ignore_eos", kGenerate, &G::ignore_eos),

      // What to report.
      Bool("logprobs", kChat, &C::logprobs),
      Int("top_logprobs", kChat, &C::top_logprobs, 0, kMaxInt32),
      Int("logprobs", kCompletions, &P::logprobs, 0, kMaxInt32),
      Int("prompt_logprobs", kGenerate, &G::prompt_logprobs, 0, kMaxInt32),
      Refused("logprob_token_ids", kGenerate, kNotYet, {no_list}),
      Bool("skip_special_tokens", kGenerate, &G::skip_special_tokens),
      Bool("return_token_ids", kGenerate, &G::return_token_ids),
      Bool("return_tokens_as_token_ids", kGenerate, &G::return_tokens_as_token_ids),
      Refused("return_prompt_text", kGenerate, kNotYet, {false}),
      Bool("stream", kGenerate, &G::stream),
      Custom<G>("stream_options", kGenerate, "object", "include_usage, continuous_usage_stats",
                SetStreamOptions),
      Refused("stream_interval", kGenerate, "only 1 is supported", {1}),

      // Structure.
      Custom<C>(
          "response_format", kGenerate, "object", "type text",
          [](const json::value& value, GenerationRequest&) { return SetResponseFormat(value); }),
      Refused("structured_outputs", kGenerate, kStructured, {no_object}),
      Refused("guided_json", kGenerate, kStructured),
      Refused("guided_regex", kGenerate, kStructured),
      Refused("guided_choice", kGenerate, kStructured),
      Refused("guided_grammar", kGenerate, kStructured),
      Refused("functions", kChat, "is the old form of tools; use tools", {no_list}),
      Refused("function_call", kChat, "is the old form of tool_choice; use tool_choice", {"none"}),

      // Inputs and outputs that would change the answer.
      Refused("truncate_prompt_tokens", kGenerate | kTokenize, kNotYet),
      Refused("truncation_side", kGenerate | kTokenize, kNotYet),
      Refused("prompt_embeds", kGenerate, "is not supported"),
      Refused("mm_processor_kwargs", kGenerate, "this server reads text only", {no_object}),
      Refused("modalities", kChat, "only text is supported", {json::array({"text"})}),
      Refused("audio", kChat, "only text is supported"),
      Refused("web_search_options", kChat, "is not supported"),
      Refused("kv_transfer_params", kGenerate, "is not supported", {no_object}),
      Refused("priority", kGenerate, "needs priority scheduling, which is not there yet", {0}),

      // Names and notes.
      String("cache_salt", kGenerate, &G::cache_salt),
      String("request_id", kGenerate, &G::request_id),
      Ignored("user", kAllApis),
      Ignored("session_id", kGenerate),
      Ignored("metadata", kGenerate),
      Ignored("store", kGenerate),
      Ignored("service_tier", kGenerate),
      Ignored("prediction", kChat),
      Ignored("verbosity", kChat),
      Ignored("cache_prompt", kGenerate),
      Ignored("spaces_between_special_tokens", kGenerate),
      Ignored("media_io_kwargs", kGenerate),
      Ignored("vllm_xargs", kGenerate),
  };
}

// ---- Parsing ----

const Field* FindField(std::string_view name, Api api) {
  for (const Field& field : FieldTable()) {
    if (field.name == name && (field.apis & api) != 0) return &field;
  }
  return nullptr;
}

template <typename Request>
ApiResult<Request> Parse(std::string_view body, Api api) {
  auto value = ParseJson(body);
  if (!value) return tl::unexpected(ApiError{std::move(value).error(), ""});
  if (!value->is_object()) return Refuse("", "the body must be a JSON object");
  Request request;
  for (const auto& [name, member] : value->get_object()) {
    if (member.is_null()) continue;
    const Field* field = FindField(name, api);
    if (field == nullptr) continue;
    auto status = field->set(member, request);
    if (!status) return tl::unexpected(std::move(status).error());
  }
  return request;
}

// Rules over several fields that both generating APIs share.
ApiStatus CheckTogether(GenerationRequest& request) {
  if (request.max_completion_tokens) request.max_tokens = request.max_completion_tokens;
  if (request.has_stream_options && !request.stream) {
    return Refuse("stream_options", "stream_options: is only allowed with stream true");
  }
  if (request.max_tokens && request.min_tokens > *request.max_tokens) {
    return Refuse("min_tokens", "min_tokens: {} is larger than max_tokens, {}", request.min_tokens,
                  *request.max_tokens);
  }
  if (request.prompt_logprobs && request.stream) {
    return Refuse("prompt_logprobs", "prompt_logprobs: is not available with stream true");
  }
  return {};
}

}  // namespace

std::span<const Field> FieldTable() {
  static const std::vector<Field> table = MakeTable();
  return table;
}

ApiResult<ChatRequest> ParseChatRequest(std::string_view body) {
  auto request = Parse<ChatRequest>(body, kChat);
  if (!request) return request;
  if (auto status = CheckTogether(*request); !status) {
    return tl::unexpected(std::move(status).error());
  }
  if (request->messages.empty()) return Refuse("messages", "messages: is required");
  if (request->top_logprobs && !request->logprobs) {
    return Refuse("top_logprobs", "top_logprobs: needs logprobs true");
  }
  if (request->continue_final_message && request->add_generation_prompt) {
    return Refuse("continue_final_message",
                  "continue_final_message: needs add_generation_prompt false");
  }
  if (request->tool_choice == ChatRequest::ToolChoice::kAuto && request->tools.empty()) {
    return Refuse("tool_choice", "tool_choice: \"auto\" needs tools");
  }
  return request;
}

ApiResult<CompletionRequest> ParseCompletionRequest(std::string_view body) {
  auto request = Parse<CompletionRequest>(body, kCompletions);
  if (!request) return request;
  if (auto status = CheckTogether(*request); !status) {
    return tl::unexpected(std::move(status).error());
  }
  if (request->prompts.empty()) return Refuse("prompt", "prompt: is required");
  if (request->max_tokens == 0 && !request->echo) {
    return Refuse("max_tokens", "max_tokens: 0 is only allowed with echo, to score the prompt");
  }
  const auto choices = static_cast<int64_t>(request->prompts.size()) * request->n;
  if (choices > 1024) {
    return Refuse("n", "n: {} prompts times n {} are {} choices; at most 1024 are allowed",
                  request->prompts.size(), request->n, choices);
  }
  return request;
}

ApiResult<TokenizeRequest> ParseTokenizeRequest(std::string_view body) {
  auto request = Parse<TokenizeRequest>(body, kTokenize);
  if (!request) return request;
  if (!request->prompt && !request->content && request->messages.empty()) {
    return Refuse("prompt", "one of prompt, content and messages is required");
  }
  if (request->continue_final_message && request->add_generation_prompt) {
    return Refuse("continue_final_message",
                  "continue_final_message: needs add_generation_prompt false");
  }
  return request;
}

ApiResult<DetokenizeRequest> ParseDetokenizeRequest(std::string_view body) {
  auto request = Parse<DetokenizeRequest>(body, kDetokenize);
  if (request && !request->tokens) return Refuse("tokens", "tokens: is required");
  return request;
}

}  // namespace nibble::server
