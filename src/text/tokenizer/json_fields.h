// Reading fields of a tokenizer.json component with errors that name component and field.
#pragma once

#include <boost/json.hpp>

#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace nibble::text {

// `what` names the component in messages: "pre_tokenizer Split".
Result<const boost::json::object*> AsObject(const boost::json::value& value, std::string_view what);
Result<const boost::json::array*> ArrayField(const boost::json::object& object,
                                             std::string_view key, std::string_view what);
Result<std::string_view> StringField(const boost::json::object& object, std::string_view key,
                                     std::string_view what);
// Absent or null gives `fallback`; without a fallback the field is required.
Result<bool> BoolField(const boost::json::object& object, std::string_view key,
                       std::string_view what, std::optional<bool> fallback = std::nullopt);
Result<int64_t> IntField(const boost::json::object& object, std::string_view key,
                         std::string_view what, std::optional<int64_t> fallback = std::nullopt);

// The one code point of a string field.
Result<char32_t> CharField(const boost::json::object& object, std::string_view key,
                           std::string_view what);

// The value under key, nullptr if it is absent or null.
const boost::json::value* FindField(const boost::json::object& object, std::string_view key);

}  // namespace nibble::text
