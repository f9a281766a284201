#include "text/tool_parsers/tool_schemas.h"

#include <fmt/format.h>
#include <boost/json.hpp>

#include <algorithm>
#include <iterator>
#include <optional>

#include "text/tool_parsers/bodies.h"
#include "text/tool_parsers/json_scanner.h"
#include "text/tool_parsers/tags.h"

namespace nibble::text {

namespace json = boost::json;

namespace {

struct Types {
  bool string = false;
  bool null = false;
  bool other = false;
};

void AddType(const json::value& name, Types* types) {
  if (!name.is_string()) return;
  const std::string_view text = name.get_string();
  (text == "string" ? types->string : text == "null" ? types->null : types->other) = true;
}

void AddTypesOf(const json::value& schema, Types* types, int depth = 0) {
  const json::object* object = schema.if_object();
  if (object == nullptr || depth > 4) return;
  if (const json::value* type = object->if_contains("type")) {
    AddType(*type, types);
    if (const json::array* list = type->if_array()) {
      for (const json::value& name : *list) AddType(name, types);
    }
  }
  for (const std::string_view key : {"anyOf", "oneOf"}) {
    const json::value* branches = object->if_contains(key);
    if (branches == nullptr || !branches->is_array()) continue;
    for (const json::value& branch : branches->get_array()) AddTypesOf(branch, types, depth + 1);
  }
}

const json::object* ObjectAt(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_object();
}

bool IsJson(std::string_view text) {
  JsonScanner scanner;
  for (size_t i = 0; i < text.size(); ++i) {
    const JsonScanner::Step step = scanner.Push(text[i]);
    if (step == JsonScanner::Step::kInvalid || step == JsonScanner::Step::kDoneBefore) return false;
    if (step == JsonScanner::Step::kDone) return i + 1 == text.size();
  }
  // A number is complete only at what follows it.
  return !text.empty() && scanner.Push(' ') == JsonScanner::Step::kDoneBefore;
}

}  // namespace

ToolSchemas::ToolSchemas(const json::array& tools) {
  for (const json::value& tool : tools) {
    const json::object* entry = tool.if_object();
    const json::object* function = entry == nullptr ? nullptr : ObjectAt(*entry, "function");
    const json::value* name = function == nullptr ? nullptr : function->if_contains("name");
    const json::object* schema = function == nullptr ? nullptr : ObjectAt(*function, "parameters");
    const json::object* properties = schema == nullptr ? nullptr : ObjectAt(*schema, "properties");
    if (name == nullptr || !name->is_string() || properties == nullptr) continue;
    auto& parameters = functions_[std::string(name->get_string())];
    for (const auto& [parameter, property] : *properties) {
      Types types;
      AddTypesOf(property, &types);
      if (!types.string || types.other) continue;
      parameters[std::string(parameter)] = types.null ? Type::kStringOrNull : Type::kString;
    }
  }
}

ToolSchemas::Type ToolSchemas::TypeOf(std::string_view function, std::string_view parameter) const {
  const auto parameters = functions_.find(function);
  if (parameters == functions_.end()) return Type::kOther;
  const auto type = parameters->second.find(parameter);
  return type == parameters->second.end() ? Type::kOther : type->second;
}

std::string ToolSchemas::ToJson(Type type, std::string_view value) const {
  if (type == Type::kString) return JsonString(value);
  const size_t begin = std::min(value.find_first_not_of(" \t\r\n"), value.size());
  const size_t end = value.find_last_not_of(" \t\r\n");
  const std::string_view trimmed = value.substr(begin, end == value.npos ? 0 : end + 1 - begin);
  if (type == Type::kStringOrNull) return trimmed == "null" ? "null" : JsonString(value);
  if (IsJson(trimmed)) return std::string(trimmed);
  if (const auto literal = PythonLiteralToJson(trimmed)) return *literal;
  return JsonString(value);
}

void AppendJsonEscaped(std::string_view text, std::string* out) {
  for (const char c : text) {
    switch (c) {
      case '"':
      case '\\':
        *out += '\\';
        *out += c;
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          fmt::format_to(std::back_inserter(*out), "\\u{:04x}", static_cast<unsigned>(c));
        } else {
          *out += c;
        }
    }
  }
}

std::string JsonString(std::string_view text) {
  std::string result = "\"";
  AppendJsonEscaped(text, &result);
  result += '"';
  return result;
}

}  // namespace nibble::text
