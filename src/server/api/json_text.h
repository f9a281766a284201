// JSON as text: strict parsing of what clients send, and fast writing of what they get.
#pragma once

#include <boost/json.hpp>

#include <string>
#include <string_view>

#include "base/error.h"

namespace nibble::server {

// One JSON value and nothing after it. Bounded depth; refuses invalid UTF-8 and lone surrogates.
// Errors (kInvalidArgument) say what is wrong and at which byte.
Result<boost::json::value> ParseJson(std::string_view text);

// "text" with quotes and escapes. `text` must be valid UTF-8.
void AppendJsonString(std::string& out, std::string_view text);

// A float as its shortest decimal form; the same float always gives the same digits. JSON has no
// infinity: clients expect -9999.0 for minus infinity.
void AppendJsonFloat(std::string& out, float value);

// The text with every byte that is not part of a code point replaced by U+FFFD.
std::string ValidUtf8(std::string_view bytes);

// Code points in a valid UTF-8 text.
size_t CountCodePoints(std::string_view text);

}  // namespace nibble::server
