// The types that tools declare for their parameters: formats that write values without quotes need
// them to tell "5" from 5. Immutable; copies share nothing.
#pragma once

#include <boost/json/fwd.hpp>

#include <map>
#include <string>
#include <string_view>

namespace nibble::text {

class ToolSchemas {
 public:
  enum class Type {
    kString,
    kStringOrNull,
    kOther,  // another type, several, or not declared
  };

  ToolSchemas() = default;
  // A list of {"function": {"name", "parameters": schema}}; other entries are ignored.
  explicit ToolSchemas(const boost::json::array& tools);

  Type TypeOf(std::string_view function, std::string_view parameter) const;

  // The JSON text of a value that the model wrote without quotes: a declared string is one as it
  // is, anything else is JSON or a literal of Python if it can be read so, and a string if not.
  std::string ToJson(Type type, std::string_view value) const;

 private:
  std::map<std::string, std::map<std::string, Type, std::less<>>, std::less<>> functions_;
};

// Appends text as the inside of a JSON string.
void AppendJsonEscaped(std::string_view text, std::string* out);
std::string JsonString(std::string_view text);

}  // namespace nibble::text
