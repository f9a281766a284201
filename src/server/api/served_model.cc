#include "server/api/served_model.h"

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "server/api/json_text.h"
#include "text/chat_template_source.h"

namespace nibble::server {
namespace {

namespace json = boost::json;

Result<json::object> ParseObject(std::string_view text, std::string_view what) {
  if (text.empty()) return json::object();
  auto value = ParseJson(text);
  if (!value) return tl::unexpected(value.error().Context(what));
  if (!value->is_object()) return Fail(Code::kInvalidArgument, "{}: must be a JSON object", what);
  return std::move(value->get_object());
}

template <typename T>
Status ReadDefault(const json::object& config, std::string_view name, double low, double high,
                   T& out) {
  const json::value* value = config.if_contains(name);
  if (value == nullptr || value->is_null()) return {};
  const double number = value->is_number() ? value->to_number<double>() : low - 1.0;
  if (!(number >= low && number <= high)) {
    return Fail(Code::kInvalidArgument,
                "generation_config.json: {} is {}; must be a number between {} and {}", name,
                json::serialize(*value), low, high);
  }
  out = static_cast<T>(number);
  return {};
}

Status ReadSamplingDefaults(const json::object& config, ServedModel& model) {
  engine::SamplingParams& sampling = model.default_sampling;
  NIBBLE_TRY(ReadDefault(config, "temperature", 0.0, 100.0, sampling.temperature));
  NIBBLE_TRY(ReadDefault(config, "top_p", 1e-6, 1.0, sampling.top_p));
  NIBBLE_TRY(ReadDefault(config, "top_k", -1.0, 1e9, sampling.top_k));
  NIBBLE_TRY(ReadDefault(config, "min_p", 0.0, 1.0, sampling.min_p));
  NIBBLE_TRY(ReadDefault(config, "repetition_penalty", 1e-6, 1e6, sampling.repetition_penalty));
  sampling.top_k = std::max(sampling.top_k, 0);
  int64_t max_new_tokens = 0;
  NIBBLE_TRY(ReadDefault(config, "max_new_tokens", 1.0, 1e9, max_new_tokens));
  if (max_new_tokens > 0) model.default_max_tokens = max_new_tokens;
  return {};
}

size_t LongestToken(const text::Tokenizer& tokenizer) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.TokenBytes(id).size());
  }
  return longest;
}

text::ParserNames ParsersFor(std::string_view source, const ServedModelOptions& options) {
  text::ParserNames names = text::ChooseParsers(source);
  if (options.tool_parser != "auto") names.tools = options.tool_parser;
  if (options.reasoning_parser != "auto") names.reasoning = options.reasoning_parser;
  return names;
}

// nullopt where the source is empty.
Result<std::optional<ServedTemplate>> MakeTemplate(const std::string& source,
                                                   const ServedModelOptions& options,
                                                   const json::object& special_tokens) {
  if (source.empty()) return std::nullopt;
  auto compiled = text::ChatTemplate::Compile(source);
  if (!compiled) return tl::unexpected(compiled.error().Context("chat template"));
  const text::ToolCallForm form = text::ProbeToolCallForm(*compiled, special_tokens);
  return ServedTemplate{std::move(*compiled), form, ParsersFor(source, options)};
}

}  // namespace

bool ServedModel::Answers(std::string_view model_name) const {
  return model_name.empty() || std::find(names.begin(), names.end(), model_name) != names.end();
}

Result<std::shared_ptr<const ServedModel>> MakeServedModel(ServedModelOptions options) {
  auto model = std::make_shared<ServedModel>();
  model->engine = options.engine.get();
  model->names = std::move(options.names);
  if (model->names.empty()) return Fail(Code::kInvalidArgument, "the served model has no name");
  model->root = options.root.empty() ? model->names.front() : options.root;
  model->created = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  model->max_logprobs = options.max_logprobs;
  model->longest_token_bytes = LongestToken(model->tokenizer());

  NIBBLE_ASSIGN(
      model->special_tokens,
      text::SpecialTokenVariables(options.tokenizer_config_json, options.special_tokens_map_json));
  NIBBLE_ASSIGN(json::object generation,
                ParseObject(options.generation_config_json, "generation_config.json"));
  NIBBLE_ASSIGN(const json::object overrides,
                ParseObject(options.override_generation_config, "--override-generation-config"));
  for (const auto& [name, value] : overrides) generation[name] = value;
  NIBBLE_TRY(ReadSamplingDefaults(generation, *model));
  NIBBLE_ASSIGN(model->default_kwargs, ParseObject(options.default_chat_template_kwargs,
                                                   "--default-chat-template-kwargs"));

  NIBBLE_TRY(text::AnswerParser::Make({.names = ParsersFor(options.chat_template, options)}));
  NIBBLE_ASSIGN(model->chat_template,
                MakeTemplate(options.chat_template, options, model->special_tokens));
  NIBBLE_ASSIGN(model->tool_use_template,
                MakeTemplate(options.tool_use_template, options, model->special_tokens));
  return model;
}

}  // namespace nibble::server
