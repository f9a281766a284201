// Global functions, and the methods of lists, tuples, dicts and loops.

#include <algorithm>
#include <array>
#include <ctime>
#include <iterator>
#include <span>

#include "text/jinja/runtime.h"

namespace nibble::text::jinja {
namespace {

using Args = BoundArguments;

const Builtin* FindIn(std::span<const Builtin> table, std::string_view name) {
  const auto at = std::find_if(table.begin(), table.end(),
                               [name](const Builtin& builtin) { return builtin.name == name; });
  return at == table.end() ? nullptr : &*at;
}

// ---- Globals ----

Result<Value> DoRaise(Runtime& runtime, const Value&, Args& args) {
  NIBBLE_ASSIGN(const StringPtr message, runtime.Str(args[0]));
  return Fail(Code::kInvalidArgument, "{}", message->bytes);
}

Result<Value> DoStrftimeNow(Runtime& runtime, const Value&, Args& args) {
  NIBBLE_ASSIGN(const StringPtr format, ToText(args[0], "the format of strftime_now"));
  constexpr size_t kMaxFormat = 256;
  if (format->size() > kMaxFormat) {
    return Fail(Code::kInvalidArgument, "strftime_now: the format is longer than {} bytes",
                kMaxFormat);
  }
  std::tm local{};
  const std::time_t now = runtime.now();
  localtime_r(&now, &local);
  std::array<char, 4096> buffer;
  const size_t length = std::strftime(buffer.data(), buffer.size(), format->bytes.c_str(), &local);
  StringBuilder out;
  out.Append({buffer.data(), length}, !format->untrusted.empty());
  return runtime.MakeString(out);
}

Result<Value> DoRange(Runtime& runtime, const Value&, Args& args) {
  Range range;
  NIBBLE_ASSIGN(Integer stop, ToInteger(args[0], "range"));
  if (args.Has(1)) {
    range.start = stop;
    NIBBLE_ASSIGN(stop, ToInteger(args[1], "range"));
  }
  if (args.Has(2)) {
    NIBBLE_ASSIGN(range.step, ToInteger(args[2], "range"));
  }
  if (range.step == 0) return Fail(Code::kInvalidArgument, "range: the step is zero");
  constexpr Integer kFar = static_cast<Integer>(1) << 100;
  for (const Integer part : {range.start, stop, range.step}) {
    if (part > kFar || part < -kFar) return Fail(Code::kInvalidArgument, "range: too large");
  }
  const Integer span = range.step > 0 ? stop - range.start : range.start - stop;
  const Integer step = range.step > 0 ? range.step : -range.step;
  range.length = span <= 0 ? 0 : (span + step - 1) / step;
  if (range.length > runtime.limits().range_length) {
    return Fail(Code::kInvalidArgument, "range: at most {} items",
                static_cast<int64_t>(runtime.limits().range_length));
  }
  return Value(range);
}

// The entries of dict(...) and namespace(...): a dict or pairs, then names.
Result<Dict> CollectEntries(Runtime& runtime, Arguments& arguments) {
  Dict dict;
  if (arguments.positional.size() > 1) {
    return Fail(Code::kInvalidArgument, "at most 1 argument without a name is allowed");
  }
  if (arguments.positional.size() == 1) {
    const Value& source = arguments.positional[0];
    if (source.Is(Kind::kDict)) {
      NIBBLE_TRY(runtime.SpendOn(source));
      dict = source.dict();
    } else {
      NIBBLE_ASSIGN(const Values pairs, runtime.Items(source));
      for (const Value& pair : pairs) {
        NIBBLE_ASSIGN(Values parts, runtime.Items(pair));
        if (parts.size() != 2 || !IsHashable(parts[0])) {
          return Fail(Code::kInvalidArgument, "dict: needs pairs of a key and a value");
        }
        dict.Set(std::move(parts[0]), std::move(parts[1]));
      }
    }
  }
  for (auto& [name, value] : arguments.named) dict.Set(Value::String(name), std::move(value));
  return dict;
}

Result<Value> DoDict(Runtime& runtime, const Value&, Args& args) {
  NIBBLE_ASSIGN(Dict dict, CollectEntries(runtime, args.rest));
  return runtime.MakeDict(std::move(dict));
}

Result<Value> DoNamespace(Runtime& runtime, const Value&, Args& args) {
  NIBBLE_ASSIGN(const Dict dict, CollectEntries(runtime, args.rest));
  NIBBLE_TRY(runtime.Allocate(sizeof(Namespace) + dict.size() * 3 * sizeof(Value)));
  Namespace* space = runtime.NewNamespace();
  for (const auto& [key, value] : dict.entries()) {
    if (!key.IsString()) continue;  // cannot be read back
    if (key.string().bytes.starts_with("_")) {
      return Fail(Code::kInvalidArgument, "a namespace cannot store '{}': it begins with '_'",
                  key.string().bytes);
    }
    space->Set(key.string().bytes, value);
  }
  return Value(space);
}

constexpr Builtin kGlobals[] = {
    {"dict", "*", DoDict},
    {"namespace", "*", DoNamespace},
    {"raise_exception", "message", DoRaise},
    {"range", "/ start ?stop ?step", DoRange},
    {"strftime_now", "format", DoStrftimeNow},
};

// ---- Lists and tuples ----

Result<Value> DoItemCount(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_TRY(runtime.SpendOn(self));
  const Values& items = self.sequence().items;
  return Value(static_cast<size_t>(std::count_if(
      items.begin(), items.end(), [&](const Value& item) { return AreEqual(item, args[0]); })));
}

Result<Value> DoItemIndex(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_TRY(runtime.SpendOn(self));
  const Values& items = self.sequence().items;
  const auto length = static_cast<Integer>(items.size());
  Integer bounds[2] = {0, length};
  for (size_t i = 0; i < 2; ++i) {
    if (!args.Has(i + 1)) continue;
    NIBBLE_ASSIGN(bounds[i], ToInteger(args[i + 1], "a position"));
    if (bounds[i] < 0) bounds[i] = std::max<Integer>(bounds[i] + length, 0);
  }
  for (Integer i = bounds[0]; i < std::min(bounds[1], length); ++i) {
    if (AreEqual(items[static_cast<size_t>(i)], args[0])) return Value(i);
  }
  return Fail(Code::kInvalidArgument, "index: the value is not in the list");
}

Result<Value> DoCopy(Runtime&, const Value& self, Args&) { return self; }  // values never change

constexpr Builtin kSequenceMethods[] = {
    {"count", "/ value", DoItemCount},
    {"index", "/ value ?start ?stop", DoItemIndex},
    {"copy", "", DoCopy},  // last: of lists alone
};

// ---- Dicts ----

template <DictView::Type type>
Result<Value> DoView(Runtime&, const Value& self, Args&) {
  return Value(std::make_shared<const DictView>(DictView{self.dict_ptr(), type}));
}

Result<Value> DoGet(Runtime& runtime, const Value& self, Args& args) {
  if (!IsHashable(args[0])) {
    return Fail(Code::kInvalidArgument, "a '{}' cannot be a key", TypeName(args[0]));
  }
  NIBBLE_TRY(runtime.SpendOn(args[0]));
  if (const Value* value = self.dict().Find(args[0])) return *value;
  return args.Has(1) ? args[1] : Value(None{});
}

Result<Value> DoFromKeys(Runtime& runtime, const Value&, Args& args) {
  NIBBLE_ASSIGN(const Values keys, runtime.Items(args[0]));
  Dict dict;
  for (const Value& key : keys) {
    if (!IsHashable(key)) {
      return Fail(Code::kInvalidArgument, "a '{}' cannot be a key", TypeName(key));
    }
    dict.Set(key, args.Has(1) ? args[1] : Value(None{}));
  }
  return runtime.MakeDict(std::move(dict));
}

constexpr Builtin kDictMethods[] = {
    {"copy", "", DoCopy},
    {"fromkeys", "/ iterable ?value", DoFromKeys},
    {"get", "/ key ?default", DoGet},
    {"items", "", DoView<DictView::Type::kItems>},
    {"keys", "", DoView<DictView::Type::kKeys>},
    {"values", "", DoView<DictView::Type::kValues>},
};

// ---- Loops ----

Result<Value> DoCycle(Runtime&, const Value& self, Args& args) {
  const Values& values = args.rest.positional;
  if (values.empty()) return Fail(Code::kInvalidArgument, "loop.cycle needs values");
  return values[self.loop().index0 % values.size()];
}

Result<Value> DoChanged(Runtime& runtime, const Value& self, Args& args) {
  Loop& loop = self.loop();
  const Values& now = args.rest.positional;
  for (const Value& value : now) NIBBLE_TRY(runtime.SpendOn(value));
  const bool same = loop.last_changed && loop.last_changed->size() == now.size() &&
                    std::equal(now.begin(), now.end(), loop.last_changed->begin(), AreEqual);
  if (!same) loop.last_changed = now;
  return Value(!same);
}

constexpr Builtin kLoopMethods[] = {
    {"changed", "*", DoChanged},
    {"cycle", "*", DoCycle},
};

}  // namespace

const Builtin* FindGlobal(std::string_view name) { return FindIn(kGlobals, name); }
const Builtin* FindDictMethod(std::string_view name) { return FindIn(kDictMethods, name); }
const Builtin* FindLoopMethod(std::string_view name) { return FindIn(kLoopMethods, name); }

const Builtin* FindSequenceMethod(std::string_view name, bool list) {
  const std::span<const Builtin> methods(kSequenceMethods);
  return FindIn(list ? methods : methods.first(methods.size() - 1), name);
}

}  // namespace nibble::text::jinja
