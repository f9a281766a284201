#include "formats/json_file.h"

#include <array>
#include <limits>
#include <optional>
#include <utility>

namespace nibble::formats {
namespace {

namespace json = boost::json;

constexpr std::string_view kFloatKey = "__float__";

constexpr std::array<std::pair<std::string_view, double>, 3> kSpecialFloats = {{
    {"-Infinity", -std::numeric_limits<double>::infinity()},
    {"Infinity", std::numeric_limits<double>::infinity()},
    {"NaN", std::numeric_limits<double>::quiet_NaN()},
}};

std::optional<double> SpecialFloat(std::string_view name) {
  for (const auto& [spelled, value] : kSpecialFloats) {
    if (name == spelled) return value;
  }
  return std::nullopt;
}

// Rewrites bare NaN, Infinity and -Infinity (outside strings) as {"__float__": "..."}.
std::string SpellOutSpecialFloats(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (in_string && c == '\\' && at + 1 < text.size()) {
      out += c;
      out += text[++at];
      continue;
    }
    if (c == '"') in_string = !in_string;
    bool replaced = false;
    if (!in_string && (c == 'N' || c == 'I' || c == '-')) {
      for (const auto& [spelled, value] : kSpecialFloats) {
        if (!text.substr(at).starts_with(spelled)) continue;
        out += fmt::format("{{\"{}\":\"{}\"}}", kFloatKey, spelled);
        at += spelled.size() - 1;
        replaced = true;
        break;
      }
    }
    if (!replaced) out += c;
  }
  return out;
}

// Replaces every {"__float__": "Infinity"} by the double it stands for.
void RestoreSpecialFloats(json::value& value) {
  if (auto* array = value.if_array()) {
    for (json::value& item : *array) RestoreSpecialFloats(item);
    return;
  }
  auto* object = value.if_object();
  if (object == nullptr) return;
  if (object->size() == 1 && object->begin()->key() == kFloatKey &&
      object->begin()->value().is_string()) {
    if (const auto special = SpecialFloat(object->begin()->value().get_string())) {
      value = *special;
      return;
    }
  }
  for (auto& member : *object) RestoreSpecialFloats(member.value());
}

// Line and column, both from 1, of a byte offset.
std::string Position(std::string_view text, size_t offset) {
  size_t line = 1;
  size_t column = 1;
  for (const char c : text.substr(0, offset)) {
    ++column;
    if (c == '\n') {
      ++line;
      column = 1;
    }
  }
  return fmt::format("line {}, column {}", line, column);
}

}  // namespace

Result<json::object> ParseJsonObject(std::string_view text, std::string_view file) {
  std::string rewritten;
  if (text.find("NaN") != text.npos || text.find("Infinity") != text.npos) {
    rewritten = SpellOutSpecialFloats(text);
    text = rewritten;
  }
  json::parser parser;
  json::error_code error;
  const size_t consumed = parser.write_some(text.data(), text.size(), error);
  if (!error && consumed < text.size()) error = json::error::extra_data;
  if (error) {
    return Fail(Code::kCorruption, "{}: not valid JSON at {}: {}", file, Position(text, consumed),
                error.message());
  }
  json::value value = parser.release();
  RestoreSpecialFloats(value);
  if (!value.is_object()) {
    return Fail(Code::kCorruption, "{}: expected a JSON object, found {}", file,
                std::string_view(json::to_string(value.kind())));
  }
  return std::move(value.get_object());
}

const json::object* MemberObject(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_object();
}

std::string_view MemberString(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string_view(value->get_string()) : "";
}

int64_t MemberInt(const json::object& object, std::string_view key, int64_t otherwise) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_int64() ? value->get_int64() : otherwise;
}

std::string Quoted(std::string_view name) {
  constexpr size_t kMaxShown = 160;
  if (name.size() <= kMaxShown) return json::serialize(json::string_view(name));
  size_t end = kMaxShown;
  while (end > 0 && (static_cast<unsigned char>(name[end]) & 0xC0u) == 0x80u) --end;
  return json::serialize(json::string_view(name.substr(0, end))) + "...";
}

}  // namespace nibble::formats
