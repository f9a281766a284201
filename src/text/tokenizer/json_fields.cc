#include "text/tokenizer/json_fields.h"

#include "text/unicode/utf8.h"

namespace nibble::text {

namespace json = boost::json;

const json::value* FindField(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

namespace {

Result<const json::value*> RequiredField(const json::object& object, std::string_view key,
                                         std::string_view what) {
  const json::value* value = FindField(object, key);
  if (value == nullptr) {
    return Fail(Code::kInvalidArgument, "tokenizer.json: {}: field \"{}\" is missing", what, key);
  }
  return value;
}

tl::unexpected<Error> WrongType(std::string_view key, std::string_view what, const char* wanted) {
  return Fail(Code::kInvalidArgument, "tokenizer.json: {}: field \"{}\" must be {}", what, key,
              wanted);
}

}  // namespace

Result<const json::object*> AsObject(const json::value& value, std::string_view what) {
  if (!value.is_object()) {
    return Fail(Code::kInvalidArgument, "tokenizer.json: {} must be an object", what);
  }
  return &value.get_object();
}

Result<const json::array*> ArrayField(const json::object& object, std::string_view key,
                                      std::string_view what) {
  NIBBLE_ASSIGN(const json::value* value, RequiredField(object, key, what));
  if (!value->is_array()) return WrongType(key, what, "an array");
  return &value->get_array();
}

Result<std::string_view> StringField(const json::object& object, std::string_view key,
                                     std::string_view what) {
  NIBBLE_ASSIGN(const json::value* value, RequiredField(object, key, what));
  if (!value->is_string()) return WrongType(key, what, "a string");
  const json::string& text = value->get_string();
  return std::string_view(text.data(), text.size());
}

Result<bool> BoolField(const json::object& object, std::string_view key, std::string_view what,
                       std::optional<bool> fallback) {
  if (fallback && FindField(object, key) == nullptr) return *fallback;
  NIBBLE_ASSIGN(const json::value* value, RequiredField(object, key, what));
  if (!value->is_bool()) return WrongType(key, what, "true or false");
  return value->get_bool();
}

Result<int64_t> IntField(const json::object& object, std::string_view key, std::string_view what,
                         std::optional<int64_t> fallback) {
  if (fallback && FindField(object, key) == nullptr) return *fallback;
  NIBBLE_ASSIGN(const json::value* value, RequiredField(object, key, what));
  if (!value->is_int64()) return WrongType(key, what, "an integer");
  return value->get_int64();
}

Result<char32_t> CharField(const json::object& object, std::string_view key,
                           std::string_view what) {
  NIBBLE_ASSIGN(const std::string_view text, StringField(object, key, what));
  if (text.empty() || Utf8Length(text[0]) != text.size()) {
    return WrongType(key, what, "one character");
  }
  const char* p = text.data();
  return NextCodePoint(p);
}

}  // namespace nibble::text
