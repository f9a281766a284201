#include "server/api/messages.h"

#include <algorithm>
#include <string>

#include "server/api/fields.h"
#include "server/api/json_text.h"

namespace nibble::server {
namespace {

namespace json = boost::json;

// The member, or null when it is absent or null.
const json::value* Find(const json::object& object, std::string_view name) {
  const auto it = object.find(name);
  return it == object.end() || it->value().is_null() ? nullptr : &it->value();
}

ApiResult<std::string> RequiredString(const json::object& object, std::string_view name,
                                      const std::string& where) {
  const json::value* value = Find(object, name);
  if (value == nullptr || !value->is_string()) {
    return Refuse(where, "{}.{}: must be a string", where, name);
  }
  return std::string(value->get_string());
}

ApiResult<std::string> JoinParts(const json::array& parts, const std::string& where) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string at = fmt::format("{}.content[{}]", where, i);
    if (i > 0) text += '\n';
    if (parts[i].is_string()) {
      text += std::string_view(parts[i].get_string());
      continue;
    }
    if (!parts[i].is_object()) return Refuse("messages", "{}: must be an object", at);
    const json::object& part = parts[i].get_object();
    auto type = RequiredString(part, "type", at);
    if (!type) return tl::unexpected(std::move(type).error());
    if (*type != "text" && *type != "input_text" && *type != "output_text") {
      return Refuse("messages", "{}: type {} is not supported: this server reads text parts only",
                    at, Quote(*type));
    }
    auto piece = RequiredString(part, "text", at);
    if (!piece) return tl::unexpected(std::move(piece).error());
    text += *piece;
  }
  return text;
}

ApiResult<std::string> ReadContent(const json::object& message, const std::string& where) {
  const json::value* content = Find(message, "content");
  if (content == nullptr) return std::string();
  if (content->is_string()) return std::string(content->get_string());
  if (content->is_array()) return JoinParts(content->get_array(), where);
  return Refuse("messages", "{}.content: must be a string, a list of text parts or null", where);
}

// Templates want an object where the wire has JSON text; text that is no object stays text.
json::value ReadArguments(const json::value* arguments) {
  if (arguments == nullptr) return json::object();
  if (!arguments->is_string()) return *arguments;
  const std::string_view text = arguments->get_string();
  if (text.empty()) return json::object();
  auto parsed = ParseJson(text);
  return parsed && parsed->is_object() ? *std::move(parsed) : *arguments;
}

ApiResult<json::array> ReadToolCalls(const json::value& calls, const std::string& where) {
  if (!calls.is_array()) return Refuse("messages", "{}.tool_calls: must be a list", where);
  json::array result;
  for (size_t i = 0; i < calls.get_array().size(); ++i) {
    const json::value& call = calls.get_array()[i];
    const std::string at = fmt::format("{}.tool_calls[{}]", where, i);
    const json::value* function = call.is_object() ? Find(call.get_object(), "function") : nullptr;
    if (function == nullptr || !function->is_object()) {
      return Refuse("messages", "{}.function: must be an object with name and arguments", at);
    }
    auto name = RequiredString(function->get_object(), "name", at + ".function");
    if (!name) return tl::unexpected(std::move(name).error());
    json::object read;
    if (const json::value* id = Find(call.get_object(), "id")) read["id"] = *id;
    read["type"] = "function";
    read["function"] = json::object(
        {{"name", *name}, {"arguments", ReadArguments(Find(function->get_object(), "arguments"))}});
    result.push_back(std::move(read));
  }
  return result;
}

ApiResult<json::object> NormalizeMessage(const json::value& value, const std::string& where) {
  if (!value.is_object()) return Refuse("messages", "{}: must be an object", where);
  const json::object& message = value.get_object();
  auto role = RequiredString(message, "role", where);
  if (!role) return tl::unexpected(std::move(role).error());
  if (role->empty() || role->size() > 64) {
    return Refuse("messages", "{}.role: must have 1 to 64 characters", where);
  }
  auto content = ReadContent(message, where);
  if (!content) return tl::unexpected(std::move(content).error());
  json::object read;
  read["role"] = *role;
  read["content"] = *content;
  if (const json::value* name = Find(message, "name"); name != nullptr && name->is_string()) {
    read["name"] = *name;
  }
  if (*role == "tool") {
    auto id = RequiredString(message, "tool_call_id", where);
    if (!id) return tl::unexpected(std::move(id).error());
    read["tool_call_id"] = *id;
  }
  if (const json::value* calls = Find(message, "tool_calls")) {
    auto tool_calls = ReadToolCalls(*calls, where);
    if (!tool_calls) return tl::unexpected(std::move(tool_calls).error());
    if (!tool_calls->empty()) read["tool_calls"] = *std::move(tool_calls);
  }
  const json::value* reasoning = Find(message, "reasoning_content");
  if (reasoning == nullptr) reasoning = Find(message, "reasoning");
  if (reasoning != nullptr && reasoning->is_string()) {
    read["reasoning"] = *reasoning;
    read["reasoning_content"] = *reasoning;
  }
  return read;
}

}  // namespace

ApiResult<json::array> NormalizeMessages(const json::value& messages) {
  if (!messages.is_array() || messages.get_array().empty()) {
    return Refuse("messages", "messages: must be a list with at least one message");
  }
  const json::array& list = messages.get_array();
  if (list.size() > kMaxMessages) {
    return Refuse("messages", "messages: has {} entries; at most {} are allowed", list.size(),
                  kMaxMessages);
  }
  json::array result;
  for (size_t i = 0; i < list.size(); ++i) {
    auto message = NormalizeMessage(list[i], fmt::format("messages[{}]", i));
    if (!message) {
      message.error().param = "messages";
      return tl::unexpected(std::move(message).error());
    }
    result.push_back(*std::move(message));
  }
  return result;
}

ApiResult<json::array> CheckTools(const json::value& tools) {
  if (!tools.is_array() || tools.get_array().empty()) {
    return Refuse("tools",
                  "tools: must be a list with at least one tool; leave the field out for none");
  }
  const json::array& list = tools.get_array();
  if (list.size() > kMaxTools) {
    return Refuse("tools", "tools: has {} entries; at most {} are allowed", list.size(), kMaxTools);
  }
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = fmt::format("tools[{}]", i);
    if (!list[i].is_object()) return Refuse("tools", "{}: must be an object", where);
    const json::object& tool = list[i].get_object();
    const json::value* type = Find(tool, "type");
    if (type != nullptr && !(type->is_string() && type->get_string() == "function")) {
      return Refuse("tools", "{}.type: only \"function\" is supported", where);
    }
    const json::value* function = Find(tool, "function");
    if (function == nullptr || !function->is_object()) {
      return Refuse("tools", "{}.function: must be an object", where);
    }
    auto name = RequiredString(function->get_object(), "name", where + ".function");
    if (!name) return Refuse("tools", "{}", name.error().error.message());
    if (name->empty() || name->size() > 256) {
      return Refuse("tools", "{}.function.name: must have 1 to 256 characters", where);
    }
    const json::value* parameters = Find(function->get_object(), "parameters");
    if (parameters != nullptr && !parameters->is_object()) {
      return Refuse("tools", "{}.function.parameters: must be a JSON schema object", where);
    }
  }
  return list;
}

}  // namespace nibble::server
