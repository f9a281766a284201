#include "text/jinja/builtins.h"

#include <algorithm>

#include "text/jinja/python_text.h"
#include "text/jinja/runtime.h"

namespace nibble::text::jinja {
namespace {

// Walks "old new ?count".
struct ParameterList {
  explicit ParameterList(std::string_view text) {
    while (!text.empty()) {
      const size_t space = std::min(text.find(' '), text.size());
      std::string_view word = text.substr(0, space);
      text.remove_prefix(std::min(space + 1, text.size()));
      if (word == "/") {
        positional_only = true;
        continue;
      }
      const bool optional = word.starts_with('?');
      if (optional) word.remove_prefix(1);
      if (!optional) ++required;
      names.push_back(word);
    }
  }

  std::vector<std::string_view> names;
  size_t required = 0;
  bool positional_only = false;
};

Result<BoundArguments> BindArguments(const Builtin& builtin, Arguments arguments) {
  BoundArguments bound;
  if (builtin.parameters == "*") {
    bound.rest = std::move(arguments);
    return bound;
  }
  const ParameterList parameters(builtin.parameters);
  if (arguments.positional.size() > parameters.names.size()) {
    return Fail(Code::kInvalidArgument, "{} takes at most {} arguments, not {}", builtin.name,
                parameters.names.size(), arguments.positional.size());
  }
  bound.values.resize(parameters.names.size());
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    bound.values[i] = std::move(arguments.positional[i]);
  }
  for (auto& [name, value] : arguments.named) {
    const auto at = std::find(parameters.names.begin(), parameters.names.end(), name);
    if (at == parameters.names.end() || parameters.positional_only) {
      return Fail(Code::kInvalidArgument, "{} takes no argument named '{}'", builtin.name, name);
    }
    auto& slot = bound.values[static_cast<size_t>(at - parameters.names.begin())];
    if (slot) {
      return Fail(Code::kInvalidArgument, "{} got two values for '{}'", builtin.name, name);
    }
    slot = std::move(value);
  }
  for (size_t i = 0; i < parameters.required; ++i) {
    if (!bound.Has(i)) {
      return Fail(Code::kInvalidArgument, "{} misses its argument '{}'", builtin.name,
                  parameters.names[i]);
    }
  }
  return bound;
}

}  // namespace

Result<Value> CallBuiltin(Runtime& runtime, const Builtin& builtin, const Value& self,
                          Arguments arguments) {
  NIBBLE_ASSIGN(BoundArguments bound, BindArguments(builtin, std::move(arguments)));
  return builtin.call(runtime, self, bound);
}

Result<Integer> ToInteger(const Value& value, std::string_view what) {
  if (value.IsInteger()) return value.integer();
  if (value.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *value.undefined().why);
  return Fail(Code::kInvalidArgument, "{} must be an integer, not '{}'", what, TypeName(value));
}

Result<StringPtr> ToText(const Value& value, std::string_view what) {
  if (value.IsString()) return value.string_ptr();
  if (value.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *value.undefined().why);
  return Fail(Code::kInvalidArgument, "{} must be a string, not '{}'", what, TypeName(value));
}

}  // namespace nibble::text::jinja
