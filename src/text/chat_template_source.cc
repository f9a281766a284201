#include "text/chat_template_source.h"

#include <algorithm>

namespace nibble::text {
namespace {

namespace json = boost::json;

Result<json::object> ParseObject(std::string_view text, std::string_view file) {
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  if (error) return Fail(Code::kCorruption, "{} is not JSON: {}", file, error.message());
  if (!value.is_object()) return Fail(Code::kCorruption, "{} is not a JSON object", file);
  return std::move(value.get_object());
}

using Templates = std::vector<std::pair<std::string, std::string>>;

// The key `chat_template` of a file; no templates when it is absent or null.
Result<Templates> ReadKey(std::string_view text, std::string_view file) {
  NIBBLE_ASSIGN(const json::object object, ParseObject(text, file));
  Templates templates;
  const json::value* value = object.if_contains("chat_template");
  if (value == nullptr || value->is_null()) return templates;
  if (value->is_string()) {
    templates.emplace_back("default", value->get_string());
    return templates;
  }
  if (!value->is_array()) {
    return Fail(Code::kCorruption, "{}: chat_template must be a string or a list", file);
  }
  for (const json::value& item : value->get_array()) {
    const json::object* entry = item.if_object();
    const json::value* name = entry != nullptr ? entry->if_contains("name") : nullptr;
    const json::value* source = entry != nullptr ? entry->if_contains("template") : nullptr;
    if (name == nullptr || source == nullptr || !name->is_string() || !source->is_string()) {
      return Fail(Code::kCorruption,
                  "{}: each item of chat_template must have the strings name and template", file);
    }
    templates.emplace_back(name->get_string(), source->get_string());
  }
  return templates;
}

// A special token is a string or {"content": string, ...}; anything else removes it.
void SetToken(std::string_view name, const json::value& value, json::object* tokens) {
  const json::value* text = &value;
  if (const json::object* object = value.if_object()) text = object->if_contains("content");
  if (text != nullptr && text->is_string()) {
    (*tokens)[name] = text->get_string();
  } else {
    tokens->erase(name);
  }
}

// Those of one file.
void SetTokens(const json::object& file, json::object* tokens) {
  for (const auto& [key, value] : file) {
    if (std::string_view(key).ends_with("_token")) SetToken(key, value, tokens);
  }
  const json::value* extra = file.if_contains("extra_special_tokens");
  if (extra == nullptr || !extra->is_object()) return;
  for (const auto& [key, value] : extra->get_object()) SetToken(key, value, tokens);
}

}  // namespace

Result<ChatTemplateSources> ChatTemplateSources::Load(const ChatTemplateFiles& files) {
  ChatTemplateSources sources;
  if (files.chat_template_jinja) {
    sources.templates_.emplace_back("default", *files.chat_template_jinja);
  }
  sources.templates_.insert(sources.templates_.end(), files.additional.begin(),
                            files.additional.end());
  if (sources.empty() && files.tokenizer_config_json) {
    NIBBLE_ASSIGN(sources.templates_,
                  ReadKey(*files.tokenizer_config_json, "tokenizer_config.json"));
  }
  if (sources.empty() && files.chat_template_json) {
    NIBBLE_ASSIGN(sources.templates_, ReadKey(*files.chat_template_json, "chat_template.json"));
  }
  return sources;
}

const std::string* ChatTemplateSources::Find(std::string_view name) const {
  const auto at = std::find_if(templates_.begin(), templates_.end(),
                               [name](const auto& entry) { return entry.first == name; });
  return at == templates_.end() ? nullptr : &at->second;
}

std::string ChatTemplateSources::Names() const {
  std::string names;
  for (const auto& [name, source] : templates_) names += (names.empty() ? "" : ", ") + name;
  return names;
}

Result<std::string_view> ChatTemplateSources::Select(bool with_tools) const {
  if (empty()) {
    return Fail(Code::kInvalidArgument,
                "the model has no chat template: give one with --chat-template, or send a prompt "
                "to /v1/completions");
  }
  const std::string* source = with_tools ? Find("tool_use") : nullptr;
  if (source == nullptr) source = Find("default");
  if (source == nullptr && templates_.size() == 1) source = &templates_.front().second;
  if (source == nullptr) {
    return Fail(Code::kInvalidArgument,
                "the model has no chat template named 'default': choose one of {}", Names());
  }
  return *source;
}

Result<std::string_view> ChatTemplateSources::Named(std::string_view name) const {
  if (const std::string* source = Find(name)) return *source;
  return Fail(Code::kInvalidArgument, "the model has no chat template named '{}': one of {}", name,
              Names());
}

Result<json::object> SpecialTokenVariables(std::string_view tokenizer_config_json,
                                           std::string_view special_tokens_map_json) {
  json::object tokens;
  if (!tokenizer_config_json.empty()) {
    NIBBLE_ASSIGN(const json::object config,
                  ParseObject(tokenizer_config_json, "tokenizer_config.json"));
    SetTokens(config, &tokens);
    if (config.contains("added_tokens_decoder")) return tokens;
  }
  if (!special_tokens_map_json.empty()) {
    NIBBLE_ASSIGN(const json::object map,
                  ParseObject(special_tokens_map_json, "special_tokens_map.json"));
    SetTokens(map, &tokens);
  }
  return tokens;
}

}  // namespace nibble::text
