#include "server/api/prompts.h"

#include <algorithm>
#include <limits>

#include "server/api/json_text.h"

namespace nibble::server {
namespace {

namespace json = boost::json;

constexpr std::string_view kWhitespace = " \t\n\r\f\v";

std::string_view TrimLeft(std::string_view text) {
  const size_t at = text.find_first_not_of(kWhitespace);
  return at == std::string_view::npos ? std::string_view() : text.substr(at);
}

std::string_view TrimRight(std::string_view text) {
  const size_t at = text.find_last_not_of(kWhitespace);
  return text.substr(0, at == std::string_view::npos ? 0 : at + 1);
}

// For templates that know no tools: what the model must be told, in the form that the hermes parser
// reads back.
std::string DescribeTools(const json::array& tools) {
  std::string text =
      "You can call functions. Each line between <tools> and </tools> describes one as "
      "JSON.\n<tools>\n";
  for (const json::value& tool : tools) text += json::serialize(tool) + "\n";
  text +=
      "</tools>\nTo call a function, write its name and arguments as one JSON object between "
      "<tool_call> and </tool_call>, like this:\n<tool_call>\n"
      "{\"name\": \"function_name\", \"arguments\": {\"parameter\": \"value\"}}\n</tool_call>";
  return text;
}

void AddToSystemMessage(json::array& messages, const std::string& text) {
  if (!messages.empty() && messages[0].get_object()["role"] == "system") {
    json::value& content = messages[0].get_object()["content"];
    content = std::string(content.get_string()) + "\n\n" + text;
    return;
  }
  messages.insert(messages.begin(), json::object({{"role", "system"}, {"content", text}}));
}

// The template of gpt-oss reads the reasoning as `thinking`, and refuses a message with tool calls
// that has a content too: the content is a preamble to the call, and joins the reasoning.
void SetHarmonyThinking(json::object& message) {
  const json::value* reasoning = message.if_contains("reasoning_content");
  if (reasoning == nullptr || !reasoning->is_string()) return;
  std::string thinking(reasoning->get_string());
  json::value& content = message["content"];
  if (message.contains("tool_calls") && content.is_string() && !content.get_string().empty()) {
    thinking += "\n\n" + std::string(content.get_string());
    content = "";
  }
  message["thinking"] = std::move(thinking);
}

// The request's template variables over the server's defaults; only those the template reads.
json::object TemplateVariables(const ServedModel& model, const text::ChatTemplate& chat_template,
                               const ChatRequest& request) {
  json::object wanted = model.default_kwargs;
  if (!request.reasoning_effort.empty()) {
    wanted["reasoning_effort"] = request.reasoning_effort;
    // Templates of DeepSeek and Kimi call the switch `thinking`.
    for (const std::string_view name : {"enable_thinking", "thinking"}) {
      wanted[name] = request.reasoning_effort != "none";
    }
  }
  for (const auto& [name, value] : request.chat_template_kwargs) wanted[name] = value;
  json::object variables;
  for (const auto& [name, value] : wanted) {
    if (chat_template.Mentions(name)) variables[name] = value;
  }
  return variables;
}

// What transformers does for continue_final_message: the prompt ends where the last message's text
// does.
ApiResult<void> CutAfterLastMessage(const json::array& messages, text::RenderedPrompt& prompt) {
  const std::string_view content = messages.back().get_object().at("content").get_string();
  const std::string_view stripped = TrimLeft(TrimRight(content));
  const size_t at = stripped.empty() ? std::string::npos : prompt.text.rfind(stripped);
  if (at == std::string::npos) {
    return Refuse(
        "continue_final_message",
        "continue_final_message: the last message's text does not appear in the prompt that "
        "the chat template makes");
  }
  // The template may have trimmed the text: what it kept is kept.
  const std::string_view untrimmed = TrimLeft(content);
  const bool whole = std::string_view(prompt.text).substr(at, untrimmed.size()) == untrimmed;
  const size_t end = at + (whole ? untrimmed.size() : stripped.size());
  prompt.text.resize(end);
  while (!prompt.untrusted.empty() && prompt.untrusted.back().begin >= end) {
    prompt.untrusted.pop_back();
  }
  if (!prompt.untrusted.empty()) {
    prompt.untrusted.back().end = std::min(prompt.untrusted.back().end, end);
  }
  return {};
}

struct Rendered {
  text::RenderedPrompt prompt;
  ChatStart start;
};

ApiResult<Rendered> Render(const ServedModel& model, const ChatRequest& request) {
  const bool use_tools =
      !request.tools.empty() && request.tool_choice != ChatRequest::ToolChoice::kNone;
  const ServedTemplate* const served = model.TemplateFor(use_tools);
  if (served == nullptr) {
    return Refuse(
        "messages",
        "messages: this model comes without a chat template; use /v1/completions, or start "
        "the server with --chat-template");
  }
  Rendered result;
  result.start.parsers = served->parsers;
  const text::ChatTemplate& chat_template = served->chat_template;
  json::object variables = TemplateVariables(model, chat_template, request);
  json::array messages = request.messages;
  const bool template_knows_tools = chat_template.Mentions("tools");
  if (use_tools && !template_knows_tools) {
    AddToSystemMessage(messages, DescribeTools(request.tools));
    result.start.parsers.tools = "hermes";
  }
  if (!use_tools) result.start.parsers.tools = "none";
  if (!chat_template.Mentions("developer")) {
    for (json::value& message : messages) {
      json::value& role = message.get_object()["role"];
      if (role == "developer") role = "system";
    }
  }
  for (json::value& message : messages) {
    text::ApplyToolCallForm(served->tool_call_form, &message.get_object());
    if (served->parsers.reasoning == "openai_gptoss") SetHarmonyThinking(message.get_object());
  }
  variables["messages"] = std::move(messages);
  variables["tools"] =
      use_tools && template_knows_tools ? json::value(request.tools) : json::value(nullptr);
  variables["documents"] =
      request.documents.empty() ? json::value(nullptr) : json::value(request.documents);
  variables["add_generation_prompt"] = request.add_generation_prompt;

  auto prompt = chat_template.Render(variables, model.special_tokens);
  if (!prompt) {
    return Refuse("messages", "messages: {}", prompt.error().Context("chat template").message());
  }
  result.prompt = std::move(*prompt);
  if (request.continue_final_message) {
    auto cut = CutAfterLastMessage(request.messages, result.prompt);
    if (!cut) return tl::unexpected(std::move(cut).error());
  }
  const json::value* thinking = variables.if_contains("enable_thinking");
  if (thinking == nullptr) thinking = variables.if_contains("thinking");
  std::optional<bool> enable_thinking;
  if (thinking != nullptr && thinking->is_bool()) enable_thinking = thinking->get_bool();
  result.start.start =
      text::ChooseStart(result.start.parsers.reasoning, result.prompt.text, enable_thinking,
                        chat_template.Mentions("enable_thinking"));
  return result;
}

// Far more text than any tokenisation could fit into the context is refused without tokenising it.
// The factor covers normalizers that shorten text (NFC shortens by at most 3).
ApiResult<void> CheckTextSize(const ServedModel& model, size_t bytes, std::string_view field) {
  constexpr size_t kSlack = 4;
  const auto limit =
      static_cast<size_t>(model.engine->max_model_len()) * kSlack * model.longest_token_bytes;
  if (bytes <= limit) return {};
  return Refuse(std::string(field),
                "{}: {} bytes of text cannot fit into this model's context of {} tokens", field,
                bytes, model.engine->max_model_len());
}

ApiResult<void> CheckIds(const ServedModel& model, const std::vector<int32_t>& ids,
                         std::string_view field) {
  const int64_t vocabulary = model.engine->model_info().vocab_size;
  for (const int32_t id : ids) {
    if (id >= vocabulary) {
      return Refuse(std::string(field), "{}: token id {} is not in the vocabulary of {} tokens",
                    field, id, vocabulary);
    }
  }
  return {};
}

}  // namespace

ApiResult<ChatPrompt> PrepareChat(const ServedModel& model, const ChatRequest& request) {
  auto rendered = Render(model, request);
  if (!rendered) return tl::unexpected(std::move(rendered).error());
  const text::RenderedPrompt& prompt = rendered->prompt;
  if (auto fits = CheckTextSize(model, prompt.text.size(), "messages"); !fits) {
    return tl::unexpected(std::move(fits).error());
  }
  text::EncodeOptions options;
  options.add_special_tokens = request.add_special_tokens.value_or(false);
  options.untrusted = prompt.untrusted;
  auto tokens = model.tokenizer().Encode(prompt.text, options);
  if (!tokens) return tl::unexpected(ApiError{std::move(tokens).error(), "messages"});
  return ChatPrompt{*std::move(tokens), rendered->start};
}

ApiResult<std::vector<int32_t>> PreparePrompt(const ServedModel& model, const Prompt& prompt,
                                              bool add_special_tokens, bool parse_special) {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) {
    if (auto status = CheckIds(model, *ids, "prompt"); !status) {
      return tl::unexpected(std::move(status).error());
    }
    return *ids;
  }
  const std::string& text = std::get<std::string>(prompt);
  if (auto fits = CheckTextSize(model, text.size(), "prompt"); !fits) {
    return tl::unexpected(std::move(fits).error());
  }
  text::EncodeOptions options;
  options.add_special_tokens = add_special_tokens;
  options.parse_special = parse_special;
  auto tokens = model.tokenizer().Encode(text, options);
  if (!tokens) return tl::unexpected(ApiError{std::move(tokens).error(), "prompt"});
  return *std::move(tokens);
}

ApiResult<int32_t> PrepareLogprobs(const ServedModel& model, std::string_view field,
                                   int64_t asked) {
  if (asked > model.max_logprobs) {
    return Refuse(std::string(field), "{}: {} is more than this server's limit of {}", field, asked,
                  model.max_logprobs);
  }
  return static_cast<int32_t>(asked);
}

ApiResult<engine::SamplingParams> PrepareSampling(const ServedModel& model,
                                                  const GenerationRequest& request,
                                                  int64_t prompt_tokens,
                                                  std::optional<int64_t> max_tokens_default) {
  const int64_t context = model.engine->max_model_len();
  if (prompt_tokens == 0) return Refuse("prompt", "prompt: has no tokens; at least one is needed");
  const bool scores_only = request.max_tokens == 0;
  if (prompt_tokens > context || (prompt_tokens == context && !scores_only)) {
    return Refuse("prompt",
                  "This model's maximum context length is {} tokens. However, your prompt has {} "
                  "tokens. Please shorten the prompt.",
                  context, prompt_tokens);
  }
  const int64_t rest = context - prompt_tokens;
  if (request.max_tokens && *request.max_tokens > rest) {
    return Refuse(
        "max_tokens",
        "This model's maximum context length is {} tokens. However, you requested {} tokens "
        "({} in the prompt, {} for the answer). Please shorten the prompt or max_tokens.",
        context, prompt_tokens + *request.max_tokens, prompt_tokens, *request.max_tokens);
  }

  engine::SamplingParams sampling = model.default_sampling;
  const auto set = [](auto& out, const auto& value) {
    if (value) out = static_cast<std::remove_reference_t<decltype(out)>>(*value);
  };
  set(sampling.temperature, request.temperature);
  set(sampling.top_p, request.top_p);
  set(sampling.top_k, request.top_k);
  set(sampling.min_p, request.min_p);
  set(sampling.repetition_penalty, request.repetition_penalty);
  sampling.top_k = std::max(sampling.top_k, 0);  // -1 and 0 both mean off
  sampling.presence_penalty = static_cast<float>(request.presence_penalty);
  sampling.frequency_penalty = static_cast<float>(request.frequency_penalty);
  if (request.seed) sampling.seed = static_cast<uint64_t>(*request.seed);
  sampling.n = static_cast<int32_t>(request.n);
  if (sampling.n > 1 && sampling.temperature == 0.0f) {
    return Refuse("n", "n: must be 1 with temperature 0: every choice would be the same");
  }

  for (const auto& [id, bias] : request.logit_bias) {
    if (id >= model.engine->model_info().vocab_size) {
      return Refuse("logit_bias", "logit_bias: token id {} is not in the vocabulary of {} tokens",
                    id, model.engine->model_info().vocab_size);
    }
    sampling.logit_bias.emplace_back(static_cast<int32_t>(id), static_cast<float>(bias));
  }
  if (auto status = CheckIds(model, request.stop_token_ids, "stop_token_ids"); !status) {
    return tl::unexpected(std::move(status).error());
  }
  sampling.stop_token_ids = request.stop_token_ids;
  sampling.stop = request.stop;
  sampling.include_stop_string = request.include_stop_str_in_output;
  sampling.ignore_eos = request.ignore_eos;
  sampling.skip_special_tokens = request.skip_special_tokens;
  sampling.max_tokens =
      request.max_tokens.value_or(std::min(rest, max_tokens_default.value_or(rest)));
  sampling.min_tokens = request.min_tokens;
  if (sampling.min_tokens > sampling.max_tokens) {
    return Refuse("min_tokens", "min_tokens: {} is more than the {} tokens this answer may have",
                  sampling.min_tokens, sampling.max_tokens);
  }
  if (request.prompt_logprobs) {
    auto count = PrepareLogprobs(model, "prompt_logprobs", *request.prompt_logprobs);
    if (!count) return tl::unexpected(std::move(count).error());
    sampling.prompt_logprobs = *count;
  }
  return sampling;
}

}  // namespace nibble::server
