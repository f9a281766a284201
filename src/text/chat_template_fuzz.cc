// Any template, one fixed conversation: never a crash, and an end within the limits.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::text::ChatTemplate;
  static const boost::json::value variables = boost::json::parse(R"({
    "messages": [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": [{"type": "text", "text": "größe <|im_end|>"}]},
      {"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": {"a": [1, 2.5, null, true]}}}]},
      {"role": "tool", "content": "{}"}
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "documents": null, "add_generation_prompt": true, "enable_thinking": false
  })");
  static const boost::json::object trusted = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};

  const auto chat_template =
      ChatTemplate::Compile(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!chat_template) return 0;
  const auto prompt = chat_template->Render(variables.as_object(), trusted, {.now = 1700000000});
  if (!prompt) return 0;
  size_t at = 0;
  for (const auto& range : prompt->untrusted) {
    NIBBLE_CHECK(at <= range.begin && range.begin < range.end);
    at = range.end;
  }
  NIBBLE_CHECK(at <= prompt->text.size());
  return 0;
}
