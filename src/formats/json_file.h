// JSON objects as model publishers write them.
//
// Beyond RFC 8259 this reads what Python's json module writes for floats that JSON lacks: bare
// NaN, Infinity and -Infinity, and transformers' {"__float__": "Infinity"}; both become doubles.
// Nesting is limited to 32 levels; of a repeated key the last one counts, as in Python.
#pragma once

#include <boost/json.hpp>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"

namespace nibble::formats {

// `file` is named in errors.
Result<boost::json::object> ParseJsonObject(std::string_view text, std::string_view file);

// A member of that type, or what stands for a missing one: null, "", `otherwise`.
const boost::json::object* MemberObject(const boost::json::object& object, std::string_view key);
std::string_view MemberString(const boost::json::object& object, std::string_view key);
int64_t MemberInt(const boost::json::object& object, std::string_view key, int64_t otherwise = 0);

// A name out of a file, fit for a message: a JSON string literal, cut at 160 bytes.
std::string Quoted(std::string_view name);

}  // namespace nibble::formats
