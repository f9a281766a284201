// How Python writes values: str(), repr(), json.dumps, and the parsing of numbers back.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "text/jinja/value.h"

namespace nibble::text::jinja {

std::string IntegerText(Integer value);
// repr(float): the shortest digits that read back, 1e16 and up and below 1e-4 with an exponent.
std::string FloatText(double value);

// str(value) and repr(value). Marks are carried over.
void AppendStr(StringBuilder& out, const Value& value);
void AppendRepr(StringBuilder& out, const Value& value);
StringPtr ToStr(const Value& value);

struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent;  // one level of it
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
// json.dumps; an error for what it refuses.
Status AppendJson(StringBuilder& out, const Value& value, const JsonStyle& style);

// int(text, base) and float(text); nullopt where Python raises ValueError.
std::optional<Integer> ParseInteger(std::string_view text, int base);
std::optional<double> ParseFloat(std::string_view text);

}  // namespace nibble::text::jinja
