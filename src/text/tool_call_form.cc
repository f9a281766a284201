#include "text/tool_call_form.h"

#include <string>

#include "text/jinja/python_text.h"

namespace nibble::text {

namespace json = boost::json;

namespace {

constexpr std::string_view kKey = "probe_key";
constexpr std::string_view kValue = "probe_value";
constexpr std::string_view kId = "probe1234";  // nine characters, as Mistral's templates want

// In the style of json.dumps, as models write arguments. The parser bounds the depth.
std::string PythonJson(const json::value& value) {
  if (value.is_double()) return jinja::FloatText(value.get_double());
  std::string text;
  const auto separate = [&] { text += text.size() > 1 ? ", " : ""; };
  if (const json::object* object = value.if_object()) {
    text = "{";
    for (const auto& [key, member] : *object) {
      separate();
      text += json::serialize(json::value(key)) + ": " + PythonJson(member);
    }
    return text + "}";
  }
  if (const json::array* array = value.if_array()) {
    text = "[";
    for (const json::value& item : *array) {
      separate();
      text += PythonJson(item);
    }
    return text + "]";
  }
  return json::serialize(value);
}

json::array ProbeTools() {
  return {{{"type", "function"},
           {"function",
            {{"name", "probe_function"},
             {"description", "A function."},
             {"parameters", {{"type", "object"}, {"properties", json::object()}}}}}}};
}

json::array ProbeMessages(const ToolCallForm& form) {
  json::object call = {
      {"role", "assistant"},
      {"content", ""},
      {"tool_calls",
       {{{"id", kId},
         {"type", "function"},
         {"function", {{"name", "probe_function"}, {"arguments", {{kKey, kValue}}}}}}}}};
  ApplyToolCallForm(form, &call);
  return {{{"role", "user"}, {"content", "Hello"}},
          std::move(call),
          {{"role", "tool"}, {"name", "probe_function"}, {"tool_call_id", kId}, {"content", "1"}}};
}

// Key and value appear, neither quoted as Python's repr does nor as JSON inside JSON.
bool PrintsArguments(const std::string& text) {
  const auto has = [&](std::string_view part) { return text.find(part) != text.npos; };
  const std::string key(kKey);
  return has(kKey) && has(kValue) && !has("'" + key + "'") && !has("\\\"" + key);
}

}  // namespace

ToolCallForm ProbeToolCallForm(const ChatTemplate& chat_template,
                               const json::object& special_tokens) {
  for (const bool text_arguments : {false, true}) {
    for (const bool null_content : {false, true}) {
      const ToolCallForm form{.null_content = null_content, .text_arguments = text_arguments};
      const json::object variables = {{"messages", ProbeMessages(form)},
                                      {"tools", ProbeTools()},
                                      {"documents", nullptr},
                                      {"add_generation_prompt", true}};
      const auto prompt = chat_template.Render(variables, special_tokens);
      if (prompt && PrintsArguments(prompt->text)) return form;
    }
  }
  return {};
}

void ApplyToolCallForm(const ToolCallForm& form, json::object* message) {
  json::value* calls = message->if_contains("tool_calls");
  if (calls == nullptr || !calls->is_array()) return;
  json::value* content = message->if_contains("content");
  if (form.null_content && content != nullptr && *content == "") *content = nullptr;
  if (!form.text_arguments) return;
  for (json::value& call : calls->get_array()) {
    json::object* entry = call.if_object();
    json::value* function = entry == nullptr ? nullptr : entry->if_contains("function");
    if (function == nullptr || !function->is_object()) continue;
    json::value& arguments = function->get_object()["arguments"];
    if (!arguments.is_string()) arguments = PythonJson(arguments);
  }
}

}  // namespace nibble::text
