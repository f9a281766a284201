// Python's operators: arithmetic, comparison, containment, slicing.

#include <algorithm>
#include <cmath>
#include <limits>

#include "text/jinja/python_text.h"
#include "text/jinja/runtime.h"

namespace nibble::text::jinja {
namespace {

std::string_view Symbol(BinaryOperator op) {
  switch (op) {
    case BinaryOperator::kAdd:
      return "+";
    case BinaryOperator::kSub:
      return "-";
    case BinaryOperator::kMul:
      return "*";
    case BinaryOperator::kDiv:
      return "/";
    case BinaryOperator::kFloorDiv:
      return "//";
    case BinaryOperator::kMod:
      return "%";
    case BinaryOperator::kPow:
      return "**";
  }
  return "?";
}

tl::unexpected<Error> Unsupported(std::string_view op, const Value& left, const Value& right) {
  for (const Value* side : {&left, &right}) {
    if (side->IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *side->undefined().why);
  }
  return Fail(Code::kInvalidArgument, "'{}' does not work between '{}' and '{}'", op,
              TypeName(left), TypeName(right));
}

tl::unexpected<Error> TooLarge() { return Fail(Code::kInvalidArgument, "a number is too large"); }

Result<Value> PowerOfIntegers(Integer base, Integer exponent) {
  if (exponent < 0) {
    if (base == 0) return Fail(Code::kInvalidArgument, "0 cannot be raised to a negative power");
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  Integer result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return TooLarge();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return TooLarge();
  }
  return Value(result);
}

Result<Value> OnIntegers(BinaryOperator op, Integer left, Integer right) {
  Integer result = 0;
  switch (op) {
    case BinaryOperator::kAdd:
      if (__builtin_add_overflow(left, right, &result)) return TooLarge();
      return Value(result);
    case BinaryOperator::kSub:
      if (__builtin_sub_overflow(left, right, &result)) return TooLarge();
      return Value(result);
    case BinaryOperator::kMul:
      if (__builtin_mul_overflow(left, right, &result)) return TooLarge();
      return Value(result);
    case BinaryOperator::kPow:
      return PowerOfIntegers(left, right);
    default:
      break;
  }
  if (right == 0) return Fail(Code::kInvalidArgument, "division by zero");
  if (op == BinaryOperator::kDiv) {
    return Value(static_cast<double>(left) / static_cast<double>(right));
  }
  if (right == -1) {  // the one quotient that may not fit
    if (op == BinaryOperator::kMod) return Value(0);
    if (__builtin_sub_overflow(Integer{0}, left, &result)) return TooLarge();
    return Value(result);
  }
  Integer quotient = left / right, remainder = left % right;
  if (remainder != 0 && (remainder < 0) != (right < 0)) {  // Python rounds down
    --quotient;
    remainder += right;
  }
  return Value(op == BinaryOperator::kMod ? remainder : quotient);
}

double FloatModulo(double left, double right) {
  double remainder = std::fmod(left, right);
  if (remainder == 0) return std::copysign(0.0, right);
  if ((remainder < 0) != (right < 0)) remainder += right;
  return remainder;
}

double FloatFloorDivide(double left, double right) {
  const double quotient = (left - FloatModulo(left, right)) / right;
  if (quotient == 0) return std::copysign(0.0, left / right);
  const double floor = std::floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

Result<Value> OnFloats(BinaryOperator op, double left, double right) {
  switch (op) {
    case BinaryOperator::kAdd:
      return Value(left + right);
    case BinaryOperator::kSub:
      return Value(left - right);
    case BinaryOperator::kMul:
      return Value(left * right);
    case BinaryOperator::kPow: {
      if (left == 0 && right < 0) {
        return Fail(Code::kInvalidArgument, "0.0 cannot be raised to a negative power");
      }
      const double power = std::pow(left, right);
      if (std::isinf(power) && std::isfinite(left) && std::isfinite(right)) return TooLarge();
      if (std::isnan(power) && !std::isnan(left) && !std::isnan(right)) {
        return Fail(Code::kInvalidArgument, "complex numbers are not supported");
      }
      return Value(power);
    }
    default:
      break;
  }
  if (right == 0) return Fail(Code::kInvalidArgument, "division by zero");
  if (op == BinaryOperator::kDiv) return Value(left / right);
  return Value(op == BinaryOperator::kMod ? FloatModulo(left, right)
                                          : FloatFloorDivide(left, right));
}

bool SameSequenceType(const Sequence& left, const Sequence& right) {
  return (left.type == Sequence::Type::kList) == (right.type == Sequence::Type::kList);
}

Sequence::Type PlainType(const Sequence& sequence) {
  return sequence.type == Sequence::Type::kList ? Sequence::Type::kList : Sequence::Type::kTuple;
}

// A slice's bounds after Python's clamping.
struct Bounds {
  Integer begin;
  Integer step;
  Integer count;
};

Result<std::optional<Integer>> SlicePart(const Value& value) {
  if (value.IsNone()) return std::nullopt;
  if (value.IsInteger()) return std::optional<Integer>(value.integer());
  if (value.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *value.undefined().why);
  return Fail(Code::kInvalidArgument, "slice indices must be integers or none, not '{}'",
              TypeName(value));
}

Result<Bounds> ResolveSlice(Integer length, const Value& begin, const Value& end,
                            const Value& step) {
  NIBBLE_ASSIGN(const std::optional<Integer> step_part, SlicePart(step));
  NIBBLE_ASSIGN(const std::optional<Integer> begin_part, SlicePart(begin));
  NIBBLE_ASSIGN(const std::optional<Integer> end_part, SlicePart(end));
  // No step beyond the length changes anything; small ones cannot overflow below.
  const Integer by = std::clamp(step_part.value_or(1), -length - 1, length + 1);
  if (by == 0) return Fail(Code::kInvalidArgument, "slice step cannot be zero");
  const Integer low = by < 0 ? -1 : 0;
  const Integer high = by < 0 ? length - 1 : length;
  const auto clamp = [&](Integer at) {
    if (at < 0) at = at < -length ? low : at + length;
    return std::clamp(at, low, high);
  };
  const Integer from = begin_part ? clamp(*begin_part) : by < 0 ? high : low;
  const Integer to = end_part ? clamp(*end_part) : by < 0 ? low : high;
  const Integer span = by < 0 ? from - to : to - from;
  const Integer stride = by < 0 ? -by : by;
  return Bounds{from, by, span <= 0 ? 0 : (span + stride - 1) / stride};
}

StringPtr SliceCharacters(const MarkedString& text, const Bounds& bounds) {
  if (bounds.step == 1) {
    const size_t begin = ByteOffset(text, static_cast<size_t>(bounds.begin));
    const size_t end = ByteOffset(text, static_cast<size_t>(bounds.begin + bounds.count));
    return Slice(text, begin, end);
  }
  std::vector<size_t> starts;
  for (size_t at = 0; at < text.size(); at += CodePointLength(text.bytes, at)) starts.push_back(at);
  StringBuilder out;
  for (Integer i = 0; i < bounds.count; ++i) {
    const size_t at = starts[static_cast<size_t>(bounds.begin + i * bounds.step)];
    out.AppendSlice(text, at, at + CodePointLength(text.bytes, at));
  }
  return out.Finish(text.markup);
}

}  // namespace

Result<Value> Runtime::Add(const Value& left, const Value& right) {
  if (left.IsString() && right.IsString()) {
    const bool markup = left.string().markup || right.string().markup;
    StringBuilder out;
    for (const Value* side : {&left, &right}) {
      const MarkedString& text = side->string();
      if (markup && !text.markup) {
        out.Append(*EscapeHtml(text));
      } else {
        out.Append(text);
      }
    }
    return MakeString(out, markup);
  }
  if (left.Is(Kind::kSequence) && right.Is(Kind::kSequence) &&
      SameSequenceType(left.sequence(), right.sequence())) {
    Values items = left.sequence().items;
    items.insert(items.end(), right.sequence().items.begin(), right.sequence().items.end());
    return MakeList(std::move(items), PlainType(left.sequence()));
  }
  return Arithmetic(BinaryOperator::kAdd, left, right);
}

Result<Value> Runtime::Multiply(const Value& left, const Value& right) {
  const bool repeat_left = left.IsString() || left.Is(Kind::kSequence);
  const Value& repeated = repeat_left ? left : right;
  const Value& times = repeat_left ? right : left;
  if (!times.IsInteger() || !(repeated.IsString() || repeated.Is(Kind::kSequence))) {
    return Arithmetic(BinaryOperator::kMul, left, right);
  }
  const Integer count = std::max<Integer>(times.integer(), 0);
  const auto size =
      static_cast<Integer>(repeated.IsString() ? repeated.string().size()
                                               : repeated.sequence().items.size() * sizeof(Value));
  if (size > 0 && count > static_cast<Integer>(limits_.allocated_bytes) / size) {
    return Fail(Code::kInvalidArgument, "repeating by * makes too much: at most {} bytes",
                limits_.allocated_bytes);
  }
  const auto repetitions = size == 0 ? 0 : static_cast<size_t>(count);
  if (repeated.IsString()) {
    StringBuilder out;
    for (size_t i = 0; i < repetitions && !out.overflowed(); ++i) out.Append(repeated.string());
    return MakeString(out, repeated.string().markup);
  }
  const Values& items = repeated.sequence().items;
  Values out;
  out.reserve(items.size() * repetitions);
  for (size_t i = 0; i < repetitions; ++i) out.insert(out.end(), items.begin(), items.end());
  return MakeList(std::move(out), PlainType(repeated.sequence()));
}

Result<Value> Runtime::Arithmetic(BinaryOperator op, const Value& left, const Value& right) {
  if (!left.IsNumber() || !right.IsNumber()) return Unsupported(Symbol(op), left, right);
  if (left.IsInteger() && right.IsInteger()) return OnIntegers(op, left.integer(), right.integer());
  return OnFloats(op, left.number(), right.number());
}

Result<Value> Runtime::Apply(BinaryOperator op, const Value& left, const Value& right) {
  switch (op) {
    case BinaryOperator::kAdd:
      return Add(left, right);
    case BinaryOperator::kMul:
      return Multiply(left, right);
    case BinaryOperator::kMod:
      if (left.IsString()) return FormatPercent(*this, left.string(), right);
      return Arithmetic(op, left, right);
    default:
      return Arithmetic(op, left, right);
  }
}

Result<Value> Runtime::Negate(const Value& value) {
  if (value.Is(Kind::kFloat)) return Value(-value.number());
  if (value.IsInteger()) return OnIntegers(BinaryOperator::kSub, 0, value.integer());
  if (value.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *value.undefined().why);
  return Fail(Code::kInvalidArgument, "'-' does not work on '{}'", TypeName(value));
}

Result<bool> Runtime::Contains(const Value& container, const Value& item) {
  NIBBLE_TRY(Spend(1 + static_cast<int64_t>(item.weight())));
  switch (container.kind()) {
    case Kind::kString:
      if (!item.IsString()) {
        return Fail(Code::kInvalidArgument, "'in <string>' needs a string on its left, not '{}'",
                    TypeName(item));
      }
      NIBBLE_TRY(SpendOn(container));
      return FindBytes(container.string().bytes, item.string().bytes) != std::string::npos;
    case Kind::kDict:
      if (!IsHashable(item)) {
        return Fail(Code::kInvalidArgument, "a '{}' cannot be a key", TypeName(item));
      }
      return container.dict().Find(item) != nullptr;
    default:
      break;
  }
  if (!IsIterable(container)) {
    return Fail(Code::kInvalidArgument, "'in' needs a container on its right, not '{}'",
                TypeName(container));
  }
  if (container.Is(Kind::kIterator)) {  // looked through up to the match, as Python does
    Iterator& iterator = container.iterator();
    while (iterator.next < iterator.items.size()) {
      NIBBLE_TRY(SpendOn(iterator.items[iterator.next]));
      if (AreEqual(iterator.items[iterator.next++], item)) return true;
    }
    return false;
  }
  NIBBLE_TRY(SpendOn(container));
  NIBBLE_ASSIGN(const Values items, Items(container));
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& candidate) { return AreEqual(candidate, item); });
}

Result<bool> Runtime::Holds(CompareOperator op, const Value& left, const Value& right) {
  if (op == CompareOperator::kIn) return Contains(right, left);
  if (op == CompareOperator::kNotIn) {
    NIBBLE_ASSIGN(const bool contains, Contains(right, left));
    return !contains;
  }
  NIBBLE_TRY(Spend(static_cast<int64_t>(std::min(left.weight(), right.weight()))));
  if (op == CompareOperator::kEq) return AreEqual(left, right);
  if (op == CompareOperator::kNe) return !AreEqual(left, right);
  NIBBLE_ASSIGN(const std::optional<int> sign, Compare(left, right));
  if (!sign) return false;
  switch (op) {
    case CompareOperator::kLt:
      return *sign < 0;
    case CompareOperator::kLe:
      return *sign <= 0;
    case CompareOperator::kGt:
      return *sign > 0;
    default:
      return *sign >= 0;
  }
}

Result<Value> Runtime::GetSlice(const Value& object, const Value& begin, const Value& end,
                                const Value& step) {
  if (object.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *object.undefined().why);
  if (!object.IsString() && !object.Is(Kind::kSequence) && !object.Is(Kind::kRange)) {
    return Fail(Code::kInvalidArgument, "'{}' object cannot be sliced", TypeName(object));
  }
  if (object.IsString()) NIBBLE_TRY(SpendOn(object));
  NIBBLE_ASSIGN(const Bounds bounds,
                ResolveSlice(static_cast<Integer>(*LengthOf(object)), begin, end, step));
  if (object.IsString()) {
    NIBBLE_TRY(Allocate(object.string().size()));
    return Value(SliceCharacters(object.string(), bounds));
  }
  if (object.Is(Kind::kRange)) {
    const Range& range = object.range();
    return Value(Range{range.At(bounds.begin), range.step * bounds.step, bounds.count});
  }
  const Sequence& sequence = object.sequence();
  Values items;
  items.reserve(static_cast<size_t>(bounds.count));
  for (Integer i = 0; i < bounds.count; ++i) {
    items.push_back(sequence.items[static_cast<size_t>(bounds.begin + i * bounds.step)]);
  }
  return MakeList(std::move(items), PlainType(sequence));
}

}  // namespace nibble::text::jinja
