// The functions a template can call: filters, tests, methods of strings, lists and dicts, globals.
//
// Each is a row of a table: name, parameters, function. Parameters are written as in
// "old new ?count": names in order, `?` before optional ones, "/" first when they cannot be given
// by name, "*" alone when the function takes whatever arguments come. Binding and its errors are
// done once, in BindArguments.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "text/jinja/value.h"

namespace nibble::text::jinja {

class Runtime;

// The values of a builtin's parameters, in their order.
class BoundArguments {
 public:
  bool Has(size_t i) const { return i < values.size() && values[i].has_value(); }
  const Value& operator[](size_t i) const { return *values[i]; }

  std::vector<std::optional<Value>> values;
  Arguments rest;  // all arguments of a "*" builtin
};

struct Builtin {
  std::string_view name;
  std::string_view parameters;
  // self: what a filter is applied to, a test asks about, a method belongs to.
  Result<Value> (*call)(Runtime& runtime, const Value& self, BoundArguments& arguments);
};

const Builtin* FindFilter(std::string_view name);
const Builtin* FindTest(std::string_view name);
const Builtin* FindGlobal(std::string_view name);
const Builtin* FindStringMethod(std::string_view name);
const Builtin* FindSequenceMethod(std::string_view name, bool list);
const Builtin* FindDictMethod(std::string_view name);
const Builtin* FindLoopMethod(std::string_view name);

Result<Value> CallBuiltin(Runtime& runtime, const Builtin& builtin, const Value& self,
                          Arguments arguments);

// Conversions of arguments, with errors that name the parameter.
Result<Integer> ToInteger(const Value& value, std::string_view what);
Result<StringPtr> ToText(const Value& value, std::string_view what);

}  // namespace nibble::text::jinja
