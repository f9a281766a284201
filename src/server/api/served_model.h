// What the API knows about the model it serves. Immutable once made.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "text/answer_parser.h"
#include "text/chat_template.h"
#include "text/tool_call_form.h"

namespace nibble::server {

struct ServedModelOptions {
  std::shared_ptr<engine::Engine> engine;    // outlives the served model
  std::vector<std::string> names;            // the first is reported; all are accepted
  std::string root;                          // of the model card: what was loaded
  std::string tokenizer_config_json;         // empty: templates know no special tokens
  std::string special_tokens_map_json;       // of old checkpoints; else empty
  std::string generation_config_json;        // empty: neutral defaults
  std::string override_generation_config;    // JSON object of single values, or empty
  std::string chat_template;                 // empty: none, and chat is refused
  std::string tool_use_template;             // of requests with tools; empty: chat_template
  std::string default_chat_template_kwargs;  // JSON object, or empty
  std::string tool_parser = "auto";          // or a name of text/answer_parser.h
  std::string reasoning_parser = "auto";     // the same
  int32_t max_logprobs = 20;
};

// A chat template and what its source says.
struct ServedTemplate {
  text::ChatTemplate chat_template;
  text::ToolCallForm tool_call_form;
  text::ParserNames parsers;
};

struct ServedModel {
  // Not owned: answers refer to the model, and the engine's own thread may drop the last of them.
  engine::Engine* engine = nullptr;
  std::vector<std::string> names;
  std::string root;
  int64_t created = 0;  // Unix seconds
  std::optional<ServedTemplate> chat_template;
  std::optional<ServedTemplate> tool_use_template;
  boost::json::object special_tokens;  // bos_token, eos_token, ...: trusted by templates
  boost::json::object default_kwargs;
  engine::SamplingParams default_sampling;
  std::optional<int64_t> default_max_tokens;
  int32_t max_logprobs = 20;
  size_t longest_token_bytes = 1;

  // Null: chat is refused.
  const ServedTemplate* TemplateFor(bool with_tools) const {
    if (with_tools && tool_use_template) return &*tool_use_template;
    return chat_template ? &*chat_template : nullptr;
  }
  const std::string& name() const { return names.front(); }
  bool Answers(std::string_view model_name) const;
  const text::Tokenizer& tokenizer() const { return engine->tokenizer(); }
};

// Errors name the file and the field.
Result<std::shared_ptr<const ServedModel>> MakeServedModel(ServedModelOptions options);

}  // namespace nibble::server
