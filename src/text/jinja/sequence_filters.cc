// Filters that take sequences and mappings apart.

#include <algorithm>
#include <functional>
#include <iterator>
#include <unordered_map>

#include "text/jinja/filters.h"
#include "text/jinja/python_text.h"
#include "text/jinja/runtime.h"
#include "text/jinja/string_operations.h"

namespace nibble::text::jinja {
namespace {

using Args = BoundArguments;
using Getter = std::function<Result<Value>(const Value&)>;

Status NeedIterable(const Value& value, std::string_view filter) {
  if (IsIterable(value)) return {};
  return Fail(Code::kInvalidArgument, "{}: '{}' object is not iterable", filter, TypeName(value));
}

Result<Values> IterableItems(Runtime& runtime, const Value& value, std::string_view filter) {
  NIBBLE_TRY(NeedIterable(value, filter));
  return runtime.Items(value);
}

// "a.b.0" as the steps that lead to the attribute; an integer is one step, None is no step.
Result<Values> AttributePath(const Value& attribute) {
  Values path;
  if (attribute.IsNone()) return path;
  if (!attribute.IsString()) {
    path.push_back(attribute);
    return path;
  }
  const MarkedString& text = attribute.string();
  const MarkedString dot{.bytes = ".", .untrusted = {}};
  for (const SplitAt& piece : Split(text, &dot, -1)) {
    const std::string_view part =
        std::string_view(text.bytes).substr(piece.begin, piece.end - piece.begin);
    const bool digits = !part.empty() && part.find_first_not_of("0123456789") == part.npos;
    const std::optional<Integer> index = digits ? ParseInteger(part, 10) : std::nullopt;
    path.push_back(index ? Value(*index) : Value::String(part));
  }
  return path;
}

// Strings compare without regard to case unless asked for.
Result<Value> IgnoreCase(Runtime& runtime, Value value) {
  if (!value.IsString()) return value;
  NIBBLE_TRY(runtime.Spend(static_cast<int64_t>(value.string().size())));
  NIBBLE_TRY(runtime.Allocate(value.string().size()));
  return Value(Lower(value.string()));
}

Result<Getter> MakeGetter(Runtime& runtime, const Value& attribute, bool ignore_case,
                          std::optional<Value> fallback = std::nullopt) {
  NIBBLE_ASSIGN(Values path, AttributePath(attribute));
  return Getter([&runtime, path = std::move(path), ignore_case,
                 fallback = std::move(fallback)](const Value& item) -> Result<Value> {
    Value value = item;
    for (const Value& step : path) {
      NIBBLE_ASSIGN(value, runtime.GetItem(value, step));
      if (fallback && value.IsUndefined()) value = *fallback;
    }
    if (ignore_case) return IgnoreCase(runtime, std::move(value));
    return value;
  });
}

Value ArgumentOr(const Args& args, size_t i, Value fallback) {
  return args.Has(i) ? args[i] : fallback;
}

bool Flag(const Args& args, size_t i) { return args.Has(i) && IsTrue(args[i]); }

struct Keyed {
  Value key;
  Value item;
};

// Stable sort by key; `reverse` keeps equal items in their order, as Python does.
Status SortByKey(Runtime& runtime, std::vector<Keyed>& items, bool reverse) {
  Status status;
  int64_t weight = 0;
  for (const Keyed& keyed : items) weight += static_cast<int64_t>(keyed.key.weight());
  for (size_t n = items.size(); n > 0; n /= 2) NIBBLE_TRY(runtime.Spend(weight));
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& left, const Keyed& right) {
    if (!status) return false;
    auto sign = reverse ? Compare(right.key, left.key) : Compare(left.key, right.key);
    if (!sign) status = tl::unexpected<Error>(sign.error());
    return sign && *sign && **sign < 0;
  });
  return status;
}

Result<std::vector<Keyed>> WithKeys(Values items, const Getter& getter) {
  std::vector<Keyed> keyed;
  keyed.reserve(items.size());
  for (Value& item : items) {
    NIBBLE_ASSIGN(Value key, getter(item));
    keyed.push_back({std::move(key), std::move(item)});
  }
  return keyed;
}

Values WithoutKeys(std::vector<Keyed> keyed) {
  Values items;
  items.reserve(keyed.size());
  for (Keyed& entry : keyed) items.push_back(std::move(entry.item));
  return items;
}

// ---- Size and ends ----

Result<Value> DoLength(Runtime& runtime, const Value& self, Args&) {
  if (self.IsString()) NIBBLE_TRY(runtime.SpendOn(self));
  if (const std::optional<size_t> length = LengthOf(self)) return Value(*length);
  return Fail(Code::kInvalidArgument, "object of type '{}' has no length", TypeName(self));
}

Result<Value> DoFirst(Runtime& runtime, const Value& self, Args&) {
  if (self.Is(Kind::kIterator)) {
    Iterator& iterator = self.iterator();
    if (iterator.next < iterator.items.size()) return iterator.items[iterator.next++];
    return Value::MakeUndefined("No first item, sequence was empty.");
  }
  NIBBLE_ASSIGN(const Values items, IterableItems(runtime, self, "first"));
  if (items.empty()) return Value::MakeUndefined("No first item, sequence was empty.");
  return items.front();
}

Status NeedReversible(const Value& value) {
  if (value.Is(Kind::kIterator) || !IsIterable(value)) {
    return Fail(Code::kInvalidArgument, "'{}' object is not reversible", TypeName(value));
  }
  return {};
}

Result<Value> DoLast(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_TRY(NeedReversible(self));
  NIBBLE_ASSIGN(const Values items, runtime.Items(self));
  if (items.empty()) return Value::MakeUndefined("No last item, sequence was empty.");
  return items.back();
}

Result<Value> DoList(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(Values items, IterableItems(runtime, self, "list"));
  return runtime.MakeList(std::move(items));
}

Result<Value> DoReverse(Runtime& runtime, const Value& self, Args&) {
  if (self.IsString()) return runtime.GetSlice(self, None{}, None{}, Value(-1));
  NIBBLE_ASSIGN(Values items, IterableItems(runtime, self, "reverse"));
  std::reverse(items.begin(), items.end());
  if (self.Is(Kind::kIterator)) return runtime.MakeList(std::move(items));
  return runtime.MakeIterator(std::move(items));
}

// ---- Mapping and selecting ----

std::optional<Value> TakeNamed(Arguments& arguments, std::string_view name) {
  for (auto it = arguments.named.begin(); it != arguments.named.end(); ++it) {
    if (it->first != name) continue;
    Value value = std::move(it->second);
    arguments.named.erase(it);
    return value;
  }
  return std::nullopt;
}

Result<Value> DoMap(Runtime& runtime, const Value& self, Args& args) {
  if (!IsTrue(self)) return runtime.MakeIterator({});
  Arguments& arguments = args.rest;
  Getter apply;
  std::optional<Value> attribute =
      arguments.positional.empty() ? TakeNamed(arguments, "attribute") : std::nullopt;
  if (attribute) {
    std::optional<Value> fallback = TakeNamed(arguments, "default");
    if (fallback && fallback->IsNone()) fallback.reset();
    if (!arguments.named.empty()) {
      return Fail(Code::kInvalidArgument, "map takes no argument named '{}'",
                  arguments.named.front().first);
    }
    NIBBLE_ASSIGN(apply, MakeGetter(runtime, *attribute, false, std::move(fallback)));
  } else {
    if (arguments.positional.empty()) {
      return Fail(Code::kInvalidArgument, "map needs the name of a filter");
    }
    NIBBLE_ASSIGN(const StringPtr name, ToText(arguments.positional[0], "the name of a filter"));
    arguments.positional.erase(arguments.positional.begin());
    apply = [&runtime, name, &arguments](const Value& item) {
      return runtime.ApplyFilter(name->bytes, item, arguments);
    };
  }
  NIBBLE_ASSIGN(Values items, IterableItems(runtime, self, "map"));
  for (Value& item : items) {
    NIBBLE_ASSIGN(item, apply(item));
  }
  return runtime.MakeIterator(std::move(items));
}

template <bool wanted, bool by_attribute>
Result<Value> DoSelect(Runtime& runtime, const Value& self, Args& args) {
  if (!IsTrue(self)) return runtime.MakeIterator({});
  Values& positional = args.rest.positional;
  const auto take_first = [&] {
    Value value = std::move(positional.front());
    positional.erase(positional.begin());
    return value;
  };
  Value attribute = None{};
  if (by_attribute) {
    if (positional.empty())
      return Fail(Code::kInvalidArgument, "the name of an attribute is missing");
    attribute = take_first();
  }
  NIBBLE_ASSIGN(const Getter getter, MakeGetter(runtime, attribute, false));
  StringPtr test;
  if (!positional.empty()) {
    NIBBLE_ASSIGN(test, ToText(take_first(), "the name of a test"));
  }
  NIBBLE_ASSIGN(const Values items, IterableItems(runtime, self, "select"));
  Values kept;
  for (const Value& item : items) {
    NIBBLE_ASSIGN(const Value subject, getter(item));
    bool holds = IsTrue(subject);
    if (test != nullptr) {
      NIBBLE_ASSIGN(holds, runtime.ApplyTest(test->bytes, subject, args.rest));
    }
    if (holds == wanted) kept.push_back(item);
  }
  return runtime.MakeIterator(std::move(kept));
}

Result<Value> DoJoin(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(Values items, IterableItems(runtime, self, "join"));
  NIBBLE_ASSIGN(const StringPtr separator, runtime.Str(ArgumentOr(args, 0, Value::String(""))));
  if (args.Has(1) && !args[1].IsNone()) {
    NIBBLE_ASSIGN(const Getter getter, MakeGetter(runtime, args[1], false));
    for (Value& item : items) {
      NIBBLE_ASSIGN(item, getter(item));
    }
  }
  return Join(runtime, *separator, items, true);
}

Result<Value> DoItems(Runtime& runtime, const Value& self, Args&) {
  if (self.IsUndefined()) return runtime.MakeIterator({});
  if (!self.Is(Kind::kDict)) {
    return Fail(Code::kInvalidArgument, "items: can only get item pairs from a mapping, not '{}'",
                TypeName(self));
  }
  const Value view(
      std::make_shared<const DictView>(DictView{self.dict_ptr(), DictView::Type::kItems}));
  NIBBLE_ASSIGN(Values pairs, runtime.Items(view));
  return runtime.MakeIterator(std::move(pairs));
}

// ---- Ordering and grouping ----

// The attributes of sort: several may be named with commas between them.
Result<Getter> MakeSortGetter(Runtime& runtime, const Value& attribute, bool ignore_case) {
  std::vector<Getter> getters;
  if (attribute.IsString()) {
    const MarkedString comma{.bytes = ",", .untrusted = {}};
    for (const SplitAt& piece : Split(attribute.string(), &comma, -1)) {
      NIBBLE_ASSIGN(Getter getter,
                    MakeGetter(runtime, Value(Slice(attribute.string(), piece.begin, piece.end)),
                               ignore_case));
      getters.push_back(std::move(getter));
    }
  } else {
    NIBBLE_ASSIGN(Getter getter, MakeGetter(runtime, attribute, ignore_case));
    getters.push_back(std::move(getter));
  }
  return Getter([getters = std::move(getters)](const Value& item) -> Result<Value> {
    Values keys;
    for (const Getter& getter : getters) {
      NIBBLE_ASSIGN(Value key, getter(item));
      keys.push_back(std::move(key));
    }
    return MakeSequence(std::move(keys));
  });
}

Result<Value> DoSort(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(Values items, IterableItems(runtime, self, "sort"));
  NIBBLE_ASSIGN(const Getter getter,
                MakeSortGetter(runtime, ArgumentOr(args, 2, None{}), !Flag(args, 1)));
  NIBBLE_ASSIGN(std::vector<Keyed> keyed, WithKeys(std::move(items), getter));
  NIBBLE_TRY(SortByKey(runtime, keyed, Flag(args, 0)));
  return runtime.MakeList(WithoutKeys(std::move(keyed)));
}

Result<Value> DoDictSort(Runtime& runtime, const Value& self, Args& args) {
  if (!self.Is(Kind::kDict)) {
    return Fail(Code::kInvalidArgument, "dictsort needs a dict, not '{}'", TypeName(self));
  }
  Integer position = 0;
  if (args.Has(1)) {
    const std::string by = args[1].IsString() ? args[1].string().bytes : "";
    if (by != "key" && by != "value") {
      return Fail(Code::kInvalidArgument, "dictsort: sort by 'key' or 'value'");
    }
    position = by == "value" ? 1 : 0;
  }
  const Value view(
      std::make_shared<const DictView>(DictView{self.dict_ptr(), DictView::Type::kItems}));
  NIBBLE_ASSIGN(Values pairs, runtime.Items(view));
  NIBBLE_ASSIGN(const Getter getter, MakeGetter(runtime, Value(position), !Flag(args, 0)));
  NIBBLE_ASSIGN(std::vector<Keyed> keyed, WithKeys(std::move(pairs), getter));
  NIBBLE_TRY(SortByKey(runtime, keyed, Flag(args, 2)));
  return runtime.MakeList(WithoutKeys(std::move(keyed)));
}

Result<Value> DoUnique(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(Values items, IterableItems(runtime, self, "unique"));
  NIBBLE_ASSIGN(const Getter getter,
                MakeGetter(runtime, ArgumentOr(args, 1, None{}), !Flag(args, 0)));
  Dict seen;
  Values kept;
  for (Value& item : items) {
    NIBBLE_ASSIGN(Value key, getter(item));
    NIBBLE_TRY(runtime.SpendOn(key));
    if (!IsHashable(key)) {
      return Fail(Code::kInvalidArgument, "unique: a '{}' cannot be compared", TypeName(key));
    }
    if (seen.Find(key) != nullptr) continue;
    seen.Set(std::move(key), None{});
    kept.push_back(std::move(item));
  }
  return runtime.MakeIterator(std::move(kept));
}

template <bool largest>
Result<Value> DoExtreme(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(Values items, IterableItems(runtime, self, largest ? "max" : "min"));
  if (items.empty()) return Value::MakeUndefined("No aggregated item, sequence was empty.");
  NIBBLE_ASSIGN(const Getter getter,
                MakeGetter(runtime, ArgumentOr(args, 1, None{}), !Flag(args, 0)));
  NIBBLE_ASSIGN(const std::vector<Keyed> keyed, WithKeys(std::move(items), getter));
  const Keyed* best = &keyed.front();
  for (const Keyed& entry : keyed) {
    if (&entry == best) continue;
    NIBBLE_ASSIGN(
        const bool better,
        runtime.Holds(largest ? CompareOperator::kGt : CompareOperator::kLt, entry.key, best->key));
    if (better) best = &entry;
  }
  return best->item;
}

Result<Value> DoGroupBy(Runtime& runtime, const Value& self, Args& args) {
  std::optional<Value> fallback;
  if (args.Has(1) && !args[1].IsNone()) fallback = args[1];
  const bool ignore_case = !Flag(args, 2);
  NIBBLE_ASSIGN(Values items, IterableItems(runtime, self, "groupby"));
  NIBBLE_ASSIGN(const Getter getter, MakeGetter(runtime, args[0], ignore_case, fallback));
  NIBBLE_ASSIGN(const Getter plain, MakeGetter(runtime, args[0], false, fallback));
  NIBBLE_ASSIGN(std::vector<Keyed> keyed, WithKeys(std::move(items), getter));
  NIBBLE_TRY(SortByKey(runtime, keyed, false));
  Values groups;
  for (size_t begin = 0; begin < keyed.size();) {
    size_t end = begin + 1;
    while (end < keyed.size() && AreEqual(keyed[end].key, keyed[begin].key)) ++end;
    Value name = keyed[begin].key;
    if (ignore_case) {
      NIBBLE_ASSIGN(name, plain(keyed[begin].item));
    }
    Values members;
    for (size_t i = begin; i < end; ++i) members.push_back(std::move(keyed[i].item));
    NIBBLE_ASSIGN(Value list, runtime.MakeList(std::move(members)));
    NIBBLE_ASSIGN(Value group,
                  runtime.MakeList({std::move(name), std::move(list)}, Sequence::Type::kGroup));
    groups.push_back(std::move(group));
    begin = end;
  }
  return runtime.MakeList(std::move(groups));
}

Result<Value> DoSum(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const Values items, IterableItems(runtime, self, "sum"));
  NIBBLE_ASSIGN(const Getter getter, MakeGetter(runtime, ArgumentOr(args, 0, None{}), false));
  Value total = ArgumentOr(args, 1, Value(0));
  if (total.IsString()) {
    return Fail(Code::kInvalidArgument, "sum does not add strings: use join");
  }
  for (const Value& item : items) {
    NIBBLE_ASSIGN(const Value value, getter(item));
    NIBBLE_ASSIGN(total, runtime.Add(total, value));
  }
  return total;
}

// ---- Cutting ----

Result<Value> DoBatch(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const Integer count, ToInteger(args[0], "the size of a batch"));
  NIBBLE_ASSIGN(const Values items, IterableItems(runtime, self, "batch"));
  if (count < 1) return Fail(Code::kInvalidArgument, "batch: the size must be at least 1");
  Values batches;
  for (size_t begin = 0; begin < items.size();) {
    const auto size =
        static_cast<size_t>(std::min<Integer>(count, static_cast<Integer>(items.size() - begin)));
    Values batch(items.begin() + static_cast<ptrdiff_t>(begin),
                 items.begin() + static_cast<ptrdiff_t>(begin + size));
    if (args.Has(1) && !args[1].IsNone()) {
      const Integer missing = count - static_cast<Integer>(size);
      if (missing > runtime.limits().range_length) {
        return Fail(Code::kInvalidArgument, "batch: the size is too large");
      }
      batch.insert(batch.end(), static_cast<size_t>(missing), args[1]);
    }
    NIBBLE_ASSIGN(Value list, runtime.MakeList(std::move(batch)));
    batches.push_back(std::move(list));
    begin += size;
  }
  return runtime.MakeIterator(std::move(batches));
}

Result<Value> DoSlice(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const Integer count, ToInteger(args[0], "the number of slices"));
  NIBBLE_ASSIGN(const Values items, IterableItems(runtime, self, "slice"));
  if (count == 0) return Fail(Code::kInvalidArgument, "slice: the number of slices is zero");
  if (count > runtime.limits().range_length) {
    return Fail(Code::kInvalidArgument, "slice: too many slices");
  }
  const auto slices = static_cast<size_t>(std::max<Integer>(count, 0));
  Values out;
  size_t begin = 0;
  for (size_t i = 0; i < slices; ++i) {
    const size_t extra = items.size() % slices;
    const size_t end = begin + items.size() / slices + (i < extra ? 1 : 0);
    Values part(items.begin() + static_cast<ptrdiff_t>(begin),
                items.begin() + static_cast<ptrdiff_t>(end));
    if (args.Has(1) && !args[1].IsNone() && i >= extra) part.push_back(args[1]);
    NIBBLE_ASSIGN(Value list, runtime.MakeList(std::move(part)));
    out.push_back(std::move(list));
    begin = end;
  }
  return runtime.MakeIterator(std::move(out));
}

constexpr Builtin kSequenceFilters[] = {
    {"batch", "linecount ?fill_with", DoBatch},
    {"count", "", DoLength},
    {"dictsort", "?case_sensitive ?by ?reverse", DoDictSort},
    {"first", "", DoFirst},
    {"groupby", "attribute ?default ?case_sensitive", DoGroupBy},
    {"items", "", DoItems},
    {"join", "?d ?attribute", DoJoin},
    {"last", "", DoLast},
    {"length", "", DoLength},
    {"list", "", DoList},
    {"map", "*", DoMap},
    {"max", "?case_sensitive ?attribute", DoExtreme<true>},
    {"min", "?case_sensitive ?attribute", DoExtreme<false>},
    {"reject", "*", DoSelect<false, false>},
    {"rejectattr", "*", DoSelect<false, true>},
    {"reverse", "", DoReverse},
    {"select", "*", DoSelect<true, false>},
    {"selectattr", "*", DoSelect<true, true>},
    {"slice", "slices ?fill_with", DoSlice},
    {"sort", "?reverse ?case_sensitive ?attribute", DoSort},
    {"sum", "?attribute ?start", DoSum},
    {"unique", "?case_sensitive ?attribute", DoUnique},
};

}  // namespace

const Builtin* FindSequenceFilter(std::string_view name) {
  const auto* at = std::find_if(std::begin(kSequenceFilters), std::end(kSequenceFilters),
                                [name](const Builtin& builtin) { return builtin.name == name; });
  return at == std::end(kSequenceFilters) ? nullptr : at;
}

}  // namespace nibble::text::jinja
