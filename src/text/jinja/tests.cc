// Tests: what may follow `is`.

#include <algorithm>
#include <cmath>
#include <iterator>

#include "text/jinja/python_text.h"
#include "text/jinja/runtime.h"

namespace nibble::text::jinja {
namespace {

using Args = BoundArguments;

template <Kind kind>
Result<Value> IsKind(Runtime&, const Value& self, Args&) {
  return Value(self.Is(kind));
}

Result<Value> IsDefined(Runtime&, const Value& self, Args&) { return Value(!self.IsUndefined()); }

template <bool wanted>
Result<Value> IsBoolean(Runtime&, const Value& self, Args&) {
  return Value(self.Is(Kind::kBool) && self.boolean() == wanted);
}

Result<Value> IsNumber(Runtime&, const Value& self, Args&) { return Value(self.IsNumber()); }

Result<Value> IsSequence(Runtime&, const Value& self, Args&) {
  return Value(self.IsString() || self.Is(Kind::kSequence) || self.Is(Kind::kDict) ||
               self.Is(Kind::kRange) || self.IsUndefined());
}

Result<Value> IsIterableTest(Runtime&, const Value& self, Args&) { return Value(IsIterable(self)); }

Result<Value> IsCallable(Runtime&, const Value& self, Args&) {
  return Value(self.Is(Kind::kFunction) || self.Is(Kind::kMacro) || self.Is(Kind::kLoop) ||
               self.IsUndefined());
}

Result<Value> IsEscaped(Runtime&, const Value& self, Args&) {
  return Value(self.IsString() && self.string().markup);
}

// Python has one object for each of None, True, False and the small integers.
Result<Value> IsSameAs(Runtime&, const Value& self, Args& args) {
  if (self.kind() != args[0].kind()) return Value(false);
  if (self.identity() != nullptr) return Value(self.identity() == args[0].identity());
  return Value(AreEqual(self, args[0]));
}

Result<Value> Remainder(Runtime& runtime, const Value& self, const Value& divisor) {
  return runtime.Apply(BinaryOperator::kMod, self, divisor);
}

Result<Value> IsEven(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(const Value rest, Remainder(runtime, self, Value(2)));
  return Value(AreEqual(rest, Value(0)));
}

Result<Value> IsOdd(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(const Value rest, Remainder(runtime, self, Value(2)));
  return Value(AreEqual(rest, Value(1)));
}

Result<Value> IsDivisibleBy(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const Value rest, Remainder(runtime, self, args[0]));
  return Value(AreEqual(rest, Value(0)));
}

template <CompareOperator op>
Result<Value> Compares(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const bool holds, runtime.Holds(op, self, args[0]));
  return Value(holds);
}

template <bool upper>
Result<Value> HasCase(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr text, runtime.Str(self));
  return FindStringMethod(upper ? "isupper" : "islower")->call(runtime, Value(text), args);
}

template <const Builtin* (*find)(std::string_view)>
Result<Value> Names(Runtime&, const Value& self, Args&) {
  return Value(self.IsString() && find(self.string().bytes) != nullptr);
}

constexpr Builtin kTests[] = {
    {"!=", "other", Compares<CompareOperator::kNe>},
    {"<", "other", Compares<CompareOperator::kLt>},
    {"<=", "other", Compares<CompareOperator::kLe>},
    {"==", "other", Compares<CompareOperator::kEq>},
    {">", "other", Compares<CompareOperator::kGt>},
    {">=", "other", Compares<CompareOperator::kGe>},
    {"boolean", "", IsKind<Kind::kBool>},
    {"callable", "", IsCallable},
    {"defined", "", IsDefined},
    {"divisibleby", "num", IsDivisibleBy},
    {"eq", "other", Compares<CompareOperator::kEq>},
    {"equalto", "other", Compares<CompareOperator::kEq>},
    {"escaped", "", IsEscaped},
    {"even", "", IsEven},
    {"false", "", IsBoolean<false>},
    {"filter", "", Names<FindFilter>},
    {"float", "", IsKind<Kind::kFloat>},
    {"ge", "other", Compares<CompareOperator::kGe>},
    {"greaterthan", "other", Compares<CompareOperator::kGt>},
    {"gt", "other", Compares<CompareOperator::kGt>},
    {"in", "seq", Compares<CompareOperator::kIn>},
    {"integer", "", IsKind<Kind::kInt>},
    {"iterable", "", IsIterableTest},
    {"le", "other", Compares<CompareOperator::kLe>},
    {"lessthan", "other", Compares<CompareOperator::kLt>},
    {"lower", "", HasCase<false>},
    {"lt", "other", Compares<CompareOperator::kLt>},
    {"mapping", "", IsKind<Kind::kDict>},
    {"ne", "other", Compares<CompareOperator::kNe>},
    {"none", "", IsKind<Kind::kNone>},
    {"number", "", IsNumber},
    {"odd", "", IsOdd},
    {"sameas", "other", IsSameAs},
    {"sequence", "", IsSequence},
    {"string", "", IsKind<Kind::kString>},
    {"test", "", Names<FindTest>},
    {"true", "", IsBoolean<true>},
    {"undefined", "", IsKind<Kind::kUndefined>},
    {"upper", "", HasCase<true>},
};

}  // namespace

const Builtin* FindTest(std::string_view name) {
  const auto* at = std::find_if(std::begin(kTests), std::end(kTests),
                                [name](const Builtin& builtin) { return builtin.name == name; });
  return at == std::end(kTests) ? nullptr : at;
}

}  // namespace nibble::text::jinja
