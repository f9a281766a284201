// Which chat template a checkpoint's files contain. A pure function: the caller reads the files.
//
// Precedence, as in transformers: chat_template.jinja and additional_chat_templates/*.jinja, if any
// of them exists, replace what tokenizer_config.json says; its key `chat_template` is a string, or
// a list of {name, template}; chat_template.json comes from old processors. Thread-safety: none
// needed.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace nibble::text {

struct ChatTemplateFiles {
  std::optional<std::string> chat_template_jinja;
  // Of additional_chat_templates/: file name without ".jinja", content.
  std::vector<std::pair<std::string, std::string>> additional;
  std::optional<std::string> tokenizer_config_json;
  std::optional<std::string> chat_template_json;
};

// All templates of a checkpoint by name.
class ChatTemplateSources {
 public:
  // kCorruption when a file that would be used is not what it should be.
  static Result<ChatTemplateSources> Load(const ChatTemplateFiles& files);

  bool empty() const { return templates_.empty(); }
  // Each with its name; the usual one is "default".
  const std::vector<std::pair<std::string, std::string>>& templates() const { return templates_; }

  // "tool_use" when tools are passed and it exists, "default" otherwise, or the only one there is.
  // kInvalidArgument when there is none to choose; the message lists the names there are.
  Result<std::string_view> Select(bool with_tools) const;
  // By its name, for a caller that asks for one.
  Result<std::string_view> Named(std::string_view name) const;

 private:
  const std::string* Find(std::string_view name) const;
  std::string Names() const;

  std::vector<std::pair<std::string, std::string>> templates_;
};

// The special tokens that a template may print, by name, as transformers passes them: every
// "..._token" of tokenizer_config.json (bos_token, image_token, ...) and every entry of its object
// extra_special_tokens; each is a string or {"content": string}, and null or anything else means
// that there is none. Lists of tokens without a name are left out. special_tokens_map.json has the
// same form and the last word, unless the config has added_tokens_decoder, as all newer ones do.
// Both may be empty. kCorruption when a file is not a JSON object.
Result<boost::json::object> SpecialTokenVariables(std::string_view tokenizer_config_json,
                                                  std::string_view special_tokens_map_json = {});

}  // namespace nibble::text
