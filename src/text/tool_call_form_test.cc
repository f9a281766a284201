#include "text/tool_call_form.h"

#include <gtest/gtest.h>

#include <string>

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
