#include "text/tool_call_form.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "text/testing/tokenizer_data.h"

namespace nibble::text {
namespace {

namespace json = boost::json;

ToolCallForm Probe(const std::string& body) {
  const auto compiled = ChatTemplate::Compile(
      "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}" + body +
      "{% endfor %}");
  EXPECT_TRUE(compiled) << compiled.error().message();
  return ProbeToolCallForm(*compiled, {});
}

TEST(ToolCallForm, WhatTheTemplatePrintsDecides) {
  const std::string open = "{% for c in m.tool_calls %}{{ c.function.name }} ";
  // An object, printed as JSON, and by its items.
  EXPECT_EQ(Probe(open + "{{ c.function.arguments | tojson }}{% endfor %}"), ToolCallForm{});
  EXPECT_EQ(Probe(open + "{% for k, v in c.function.arguments.items() %}{{ k }}{{ v }}"
                         "{% endfor %}{% endfor %}"),
            ToolCallForm{});
  // Text: an object cannot be joined to text, or would print as Python does.
  EXPECT_EQ(Probe(open + "{{ '' + c.function.arguments }}{% endfor %}"),
            (ToolCallForm{.text_arguments = true}));
  EXPECT_EQ(Probe(open + "{{ c.function.arguments }}{% endfor %}"),
            (ToolCallForm{.text_arguments = true}));
  // DeepSeek's: calls count only where the content is none.
  EXPECT_EQ(Probe("{% if m.content is none %}" + open +
                  "{{ '' + c.function.arguments }}{% endfor %}{% endif %}"),
            (ToolCallForm{.null_content = true, .text_arguments = true}));
  // Qwen's: a content of none is an error.
  EXPECT_EQ(Probe("{% if 'x' in m.content %}{% endif %}" + open +
                  "{{ c.function.arguments | tojson }}{% endfor %}"),
            ToolCallForm{});
  EXPECT_EQ(Probe("no calls at all"), ToolCallForm{});
}

TEST(ToolCallForm, PublishedTemplates) {
  const std::vector<std::pair<std::string, ToolCallForm>> forms = {
      {"qwen3", {}}, {"deepseek_v3", {.null_content = true, .text_arguments = true}}};
  for (const auto& [name, form] : forms) {
    const std::string config = ReadPublishedFile(name, "tokenizer_config.json");
    if (config.empty()) GTEST_SKIP() << "no tokenizer_config.json of " << name << " in ../shared";
    const json::value parsed = json::parse(config);
    const auto compiled = ChatTemplate::Compile(parsed.at("chat_template").as_string());
    ASSERT_TRUE(compiled) << compiled.error().message();
    EXPECT_EQ(ProbeToolCallForm(*compiled, {{"bos_token", "<s>"}, {"eos_token", "</s>"}}), form)
        << name;
  }
}

// Mistral's templates insist on turns of user and assistant, and on ids of nine characters.
TEST(ToolCallForm, TemplatesThatCheckTheConversation) {
  EXPECT_EQ(Probe("{% if (loop.index0 == 2 and m.role != 'tool') or loop.index0 > 2 %}"
                  "{{ raise_exception('turns') }}{% endif %}"
                  "{% if m.tool_calls is defined and m.content is none %}"
                  "{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
                  "{{ raise_exception('id') }}{% endif %}{{ c.function | tojson }}{% endfor %}"
                  "{% endif %}"),
            (ToolCallForm{.null_content = true}));
}

TEST(ToolCallForm, RewritesMessages) {
  const json::object message = json::parse(R"({"role": "assistant", "content": "", "tool_calls": [
          {"function": {"name": "f", "arguments": {"a": [1, 2.5, null], "ü\n": {}}}},
          {"function": {"name": "g", "arguments": "as it is"}}]})")
                                   .as_object();
  json::object changed = message;
  ApplyToolCallForm({}, &changed);
  EXPECT_EQ(changed, message);
  ApplyToolCallForm({.null_content = true, .text_arguments = true}, &changed);
  EXPECT_TRUE(changed.at("content").is_null());
  const json::array& calls = changed.at("tool_calls").as_array();
  EXPECT_EQ(calls[0].at("function").at("arguments"), R"({"a": [1, 2.5, null], "ü\n": {}})");
  EXPECT_EQ(calls[1].at("function").at("arguments"), "as it is");
  json::object text = {{"role", "user"}, {"content", ""}};
  ApplyToolCallForm({.null_content = true, .text_arguments = true}, &text);
  EXPECT_EQ(text.at("content"), "");
}

}  // namespace
}  // namespace nibble::text
