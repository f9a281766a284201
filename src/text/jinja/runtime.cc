#include "text/jinja/runtime.h"

#include <algorithm>
#include <utility>

#include "text/jinja/python_text.h"

namespace nibble::text::jinja {
namespace {

// Methods that Python has and the sandbox refuses: reading one gives an undefined value, also where
// the dict has a key of that name.
bool IsMutator(const Value& object, std::string_view name) {
  static constexpr std::string_view kOfDicts[] = {"clear", "pop", "popitem", "setdefault",
                                                  "update"};
  static constexpr std::string_view kOfLists[] = {"append", "clear",  "extend",  "insert",
                                                  "pop",    "remove", "reverse", "sort"};
  const auto listed = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  if (object.Is(Kind::kDict)) return listed(kOfDicts);
  return object.Is(Kind::kSequence) && object.sequence().type == Sequence::Type::kList &&
         listed(kOfLists);
}

Value LoopAttribute(const Loop& loop, std::string_view name) {
  const size_t length = loop.items.size();
  if (name == "index") return Value(loop.index0 + 1);
  if (name == "index0") return Value(loop.index0);
  if (name == "revindex") return Value(length - loop.index0);
  if (name == "revindex0") return Value(length - loop.index0 - 1);
  if (name == "first") return Value(loop.index0 == 0);
  if (name == "last") return Value(loop.index0 + 1 == length);
  if (name == "length") return Value(length);
  if (name == "depth") return Value(loop.depth0 + 1);
  if (name == "depth0") return Value(loop.depth0);
  if (name == "previtem") {
    return loop.index0 == 0 ? Value::MakeUndefined("there is no previous item")
                            : loop.items[loop.index0 - 1];
  }
  if (name == "nextitem") {
    return loop.index0 + 1 == length ? Value::MakeUndefined("there is no next item")
                                     : loop.items[loop.index0 + 1];
  }
  return Value();
}

bool IsLoopAttribute(std::string_view name) {
  static constexpr std::string_view kNames[] = {"index",  "index0",   "revindex", "revindex0",
                                                "first",  "last",     "length",   "depth",
                                                "depth0", "previtem", "nextitem"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

const Builtin* FindMethod(const Value& object, std::string_view name) {
  switch (object.kind()) {
    case Kind::kString:
      return FindStringMethod(name);
    case Kind::kSequence:
      return FindSequenceMethod(name, object.sequence().type == Sequence::Type::kList);
    case Kind::kDict:
      return FindDictMethod(name);
    case Kind::kLoop:
      return FindLoopMethod(name);
    default:
      return nullptr;
  }
}

std::string NameOfObject(const Value& object) {
  return object.IsNone() ? "None" : TypeName(object) + " object";
}

}  // namespace

void Scope::Set(std::string_view name, Value value) {
  for (auto& [key, old] : variables_) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  variables_.emplace_back(name, std::move(value));
}

const Value* Scope::Find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent_.get()) {
    for (const auto& [key, value] : scope->variables_) {
      if (key == name) return &value;
    }
  }
  return nullptr;
}

Status Runtime::Spend(int64_t steps) {
  steps_ += steps;
  if (steps_ <= limits_.steps) return {};
  return Fail(Code::kInvalidArgument,
              "the template takes more than {} steps: shorten the conversation or the template",
              limits_.steps);
}

Status Runtime::Allocate(size_t bytes) {
  allocated_ += bytes;
  if (allocated_ > limits_.allocated_bytes) {
    return Fail(Code::kInvalidArgument,
                "the template makes more than {} bytes of values: shorten the conversation or the "
                "template",
                limits_.allocated_bytes);
  }
  return Spend(static_cast<int64_t>(bytes / 64));
}

Result<Value> Runtime::MakeString(StringBuilder& builder, bool markup) {
  if (builder.overflowed()) {
    return Fail(Code::kInvalidArgument, "a string of the template grows past {} bytes",
                kMaxStringBytes);
  }
  NIBBLE_TRY(Allocate(builder.size()));
  return Value(builder.Finish(markup));
}

Result<Value> Runtime::MakeList(Values items, Sequence::Type type) {
  NIBBLE_TRY(Spend(static_cast<int64_t>(items.size())));
  NIBBLE_TRY(Allocate(items.size() * sizeof(Value)));
  return MakeSequence(std::move(items), type);
}

Result<Value> Runtime::MakeIterator(Values items) {
  NIBBLE_TRY(Spend(static_cast<int64_t>(items.size())));
  NIBBLE_TRY(Allocate(items.size() * sizeof(Value)));
  return jinja::MakeIterator(std::move(items));
}

Result<Value> Runtime::MakeDict(Dict dict) {
  NIBBLE_TRY(Spend(static_cast<int64_t>(dict.size())));
  NIBBLE_TRY(Allocate(dict.size() * 3 * sizeof(Value)));
  return jinja::MakeDict(std::move(dict));
}

Result<Value> Runtime::Slice(const MarkedString& text, size_t begin, size_t end) {
  NIBBLE_TRY(Allocate(end > begin ? end - begin : 0));
  return Value(jinja::Slice(text, begin, end));
}

Result<StringPtr> Runtime::Str(const Value& value) {
  if (value.IsString() && !value.string().markup) return value.string_ptr();
  NIBBLE_TRY(SpendOn(value));
  StringBuilder builder;
  AppendStr(builder, value);
  NIBBLE_ASSIGN(const Value text, MakeString(builder));
  return text.string_ptr();
}

Result<Values> Runtime::Items(const Value& value) {
  if (value.IsUndefined()) return Values();
  const std::optional<size_t> length = LengthOf(value);
  size_t count = length.value_or(1);
  if (value.Is(Kind::kIterator)) count = value.iterator().items.size() - value.iterator().next;
  NIBBLE_TRY(Spend(static_cast<int64_t>(count)));
  NIBBLE_TRY(Allocate(count * sizeof(Value)));
  return ToItems(value);
}

Result<Value> Runtime::Call(const Value& callee, Arguments arguments) {
  switch (callee.kind()) {
    case Kind::kUndefined:
      return Fail(Code::kInvalidArgument, "{}", *callee.undefined().why);
    case Kind::kMacro:
      return CallMacro(callee.macro(), std::move(arguments));
    case Kind::kFunction: {
      const Function& function = callee.function();
      return CallBuiltin(*this, *function.builtin, function.self, std::move(arguments));
    }
    case Kind::kLoop:
      if (arguments.positional.size() != 1 || !arguments.named.empty()) {
        return Fail(Code::kInvalidArgument, "loop(...) takes one argument, the items");
      }
      return CallLoop(callee.loop(), arguments.positional[0]);
    default:
      return Fail(Code::kInvalidArgument, "'{}' object is not callable", TypeName(callee));
  }
}

Result<Value> Runtime::ApplyFilter(std::string_view name, const Value& input, Arguments arguments) {
  const Builtin* filter = FindFilter(name);
  if (filter == nullptr) {
    return Fail(Code::kInvalidArgument, "there is no filter named '{}'", name);
  }
  return CallBuiltin(*this, *filter, input, std::move(arguments));
}

Result<bool> Runtime::ApplyTest(std::string_view name, const Value& input, Arguments arguments) {
  const Builtin* test = FindTest(name);
  if (test == nullptr) return Fail(Code::kInvalidArgument, "there is no test named '{}'", name);
  NIBBLE_ASSIGN(const Value result, CallBuiltin(*this, *test, input, std::move(arguments)));
  return IsTrue(result);
}

std::optional<Value> Runtime::FindAttribute(const Value& object, std::string_view name) {
  if (name.starts_with("_") || IsMutator(object, name)) {
    if (!name.starts_with("__") && !IsMutator(object, name)) return std::nullopt;
    return Value::MakeUndefined(
        fmt::format("access to attribute '{}' of '{}' object is unsafe", name, TypeName(object)));
  }
  if (object.Is(Kind::kNamespace)) {
    const Value* value = object.name_space().Find(name);
    return value == nullptr ? std::nullopt : std::optional<Value>(*value);
  }
  if (object.Is(Kind::kLoop) && IsLoopAttribute(name)) return LoopAttribute(object.loop(), name);
  if (object.Is(Kind::kSequence) && object.sequence().type == Sequence::Type::kGroup) {
    if (name == "grouper") return object.sequence().items[0];
    if (name == "list") return object.sequence().items[1];
  }
  if (object.Is(Kind::kMacro) && name == "name") {
    return Value::String(object.macro().definition->name);
  }
  if (const Builtin* method = FindMethod(object, name)) {
    return Value(std::make_shared<const Function>(Function{method, object}));
  }
  return std::nullopt;
}

// The value under a key, nullopt where Python raises LookupError or TypeError.
Result<std::optional<Value>> Runtime::FindItem(const Value& object, const Value& key) {
  const auto found = [](Value value) { return std::optional<Value>(std::move(value)); };
  if (object.Is(Kind::kDict)) {
    if (!IsHashable(key)) return std::nullopt;
    NIBBLE_TRY(SpendOn(key));
    const Value* value = object.dict().Find(key);
    return value == nullptr ? std::nullopt : std::optional<Value>(*value);
  }
  if (!key.IsInteger()) return std::nullopt;
  const bool indexable = object.IsString() || object.Is(Kind::kSequence) || object.Is(Kind::kRange);
  if (!indexable) return std::nullopt;
  const auto length = static_cast<Integer>(*LengthOf(object));
  Integer index = key.integer();
  if (index < 0) index += length;
  if (index < 0 || index >= length) return std::nullopt;
  if (object.Is(Kind::kRange)) return found(Value(object.range().At(index)));
  if (object.Is(Kind::kSequence)) return found(object.sequence().items[static_cast<size_t>(index)]);
  const MarkedString& text = object.string();
  if (!text.ascii) NIBBLE_TRY(SpendOn(object));
  const size_t begin = ByteOffset(text, static_cast<size_t>(index));
  NIBBLE_ASSIGN(Value character, Slice(text, begin, begin + CodePointLength(text.bytes, begin)));
  return found(std::move(character));
}

Result<Value> Runtime::GetAttribute(const Value& object, std::string_view name) {
  if (object.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *object.undefined().why);
  if (std::optional<Value> value = FindAttribute(object, name)) return std::move(*value);
  if (object.Is(Kind::kDict)) {
    if (const Value* value = object.dict().Find(name)) return *value;
  }
  return Value::MakeUndefined(
      fmt::format("'{}' has no attribute '{}'", NameOfObject(object), name));
}

Result<Value> Runtime::GetItem(const Value& object, const Value& key) {
  if (object.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *object.undefined().why);
  NIBBLE_ASSIGN(std::optional<Value> value, FindItem(object, key));
  if (!value && key.IsString()) value = FindAttribute(object, key.string().bytes);
  if (value) return std::move(*value);
  StringBuilder name;
  NIBBLE_TRY(SpendOn(key));
  AppendRepr(name, key);
  return Value::MakeUndefined(fmt::format("{} has no element {}", NameOfObject(object),
                                          name.Finish()->bytes.substr(0, 80)));
}

Namespace* Runtime::NewNamespace() { return &namespaces_.emplace_back(); }
Macro* Runtime::NewMacro() { return &macros_.emplace_back(); }
Loop* Runtime::NewLoop() { return &loops_.emplace_back(); }

StringPtr EscapeHtml(const MarkedString& text) {
  StringBuilder out;
  size_t plain = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    std::string_view escaped;
    switch (text.bytes[at]) {
      case '&':
        escaped = "&amp;";
        break;
      case '<':
        escaped = "&lt;";
        break;
      case '>':
        escaped = "&gt;";
        break;
      case '"':
        escaped = "&#34;";
        break;
      case '\'':
        escaped = "&#39;";
        break;
      default:
        continue;
    }
    out.AppendSlice(text, plain, at);
    out.AppendDerived(escaped, text, at, at + 1);
    plain = at + 1;
  }
  out.AppendSlice(text, plain, text.size());
  return out.Finish(true);
}

}  // namespace nibble::text::jinja
