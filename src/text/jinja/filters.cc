// Filters on single values and on text. Those on sequences are in sequence_filters.cc.

#include "text/jinja/filters.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "text/jinja/python_text.h"
#include "text/jinja/runtime.h"
#include "text/jinja/string_operations.h"
#include "text/jinja/unicode.h"

namespace nibble::text::jinja {
namespace {

using Args = BoundArguments;

// What jinja2's soft_str gives: strings as they are, others as str().
Result<StringPtr> SoftText(Runtime& runtime, const Value& value) {
  if (value.IsString()) return value.string_ptr();
  return runtime.Str(value);
}

// ---- Numbers ----

Result<Value> DoAbs(Runtime& runtime, const Value& self, Args&) {
  if (self.Is(Kind::kFloat)) return Value(std::fabs(self.number()));
  if (self.IsInteger() && self.integer() >= 0) return Value(self.integer());
  return runtime.Negate(self);
}

std::optional<Integer> TruncateToInteger(double value) {
  constexpr double kLimit = 1e38;
  if (!std::isfinite(value) || std::fabs(value) > kLimit) return std::nullopt;
  return static_cast<Integer>(value);
}

Result<Value> DoInt(Runtime& runtime, const Value& self, Args& args) {
  const Value fallback = args.Has(0) ? args[0] : Value(0);
  if (self.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *self.undefined().why);
  std::optional<Integer> value;
  if (self.IsInteger()) {
    value = self.integer();
  } else if (self.Is(Kind::kFloat)) {
    value = TruncateToInteger(self.number());
  } else if (self.IsString()) {
    NIBBLE_TRY(runtime.SpendOn(self));
    Integer base = 10;
    if (args.Has(1)) {
      NIBBLE_ASSIGN(base, ToInteger(args[1], "the base"));
    }
    if (base != 0 && (base < 2 || base > 36)) {
      base = 10;  // int() raises ValueError, and the filter tries a float
    } else {
      value = ParseInteger(self.string().bytes, static_cast<int>(base));
    }
    if (!value) {
      if (const std::optional<double> number = ParseFloat(self.string().bytes)) {
        value = TruncateToInteger(*number);
      }
    }
  }
  return value ? Value(*value) : fallback;
}

Result<Value> DoFloat(Runtime& runtime, const Value& self, Args& args) {
  if (self.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *self.undefined().why);
  if (self.IsNumber()) return Value(self.number());
  if (self.IsString()) {
    NIBBLE_TRY(runtime.SpendOn(self));
    if (const std::optional<double> value = ParseFloat(self.string().bytes)) return Value(*value);
  }
  return args.Has(0) ? args[0] : Value(0.0);
}

// Python's round(value, digits) of a float: correctly rounded decimal, half to even.
double RoundDecimal(double value, int digits) {
  if (!std::isfinite(value)) return value;
  if (digits > 22) return value;
  if (digits >= 0) return std::strtod(fmt::format("{:.{}f}", value, digits).c_str(), nullptr);
  if (digits < -308) return std::copysign(0.0, value);
  const double scale = std::pow(10.0, -digits);
  return std::nearbyint(value / scale) * scale;
}

Result<Value> RoundInteger(Runtime& runtime, Integer value, Integer digits) {
  if (digits >= 0) return Value(value);
  if (digits < -37) return Value(0);
  Integer scale = 1;
  for (Integer i = 0; i < -digits; ++i) scale *= 10;
  Integer quotient = value / scale, rest = value % scale;
  if (rest < 0) {
    rest += scale;
    --quotient;
  }
  if (rest * 2 > scale || (rest * 2 == scale && (quotient & 1) != 0)) ++quotient;
  return runtime.Apply(BinaryOperator::kMul, Value(quotient), Value(scale));
}

Result<Value> DoRound(Runtime& runtime, const Value& self, Args& args) {
  if (self.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *self.undefined().why);
  if (!self.IsNumber()) {
    return Fail(Code::kInvalidArgument, "round does not work on '{}'", TypeName(self));
  }
  Integer precision = 0;
  if (args.Has(0)) {
    NIBBLE_ASSIGN(precision, ToInteger(args[0], "the precision"));
  }
  std::string method = "common";
  if (args.Has(1) && args[1].IsString()) method = args[1].string().bytes;
  if (method == "common") {
    if (self.IsInteger()) return RoundInteger(runtime, self.integer(), precision);
    const auto digits = static_cast<int>(std::clamp<Integer>(precision, -400, 400));
    return Value(RoundDecimal(self.number(), digits));
  }
  if (method != "ceil" && method != "floor") {
    return Fail(Code::kInvalidArgument, "round: the method is 'common', 'ceil' or 'floor'");
  }
  NIBBLE_ASSIGN(const Value scale,
                runtime.Apply(BinaryOperator::kPow, Value(10), Value(precision)));
  NIBBLE_ASSIGN(const Value scaled, runtime.Apply(BinaryOperator::kMul, self, scale));
  Value whole = scaled;
  if (scaled.Is(Kind::kFloat)) {
    const auto integer = TruncateToInteger(method == "ceil" ? std::ceil(scaled.number())
                                                            : std::floor(scaled.number()));
    if (!integer) return Fail(Code::kInvalidArgument, "round: the number is not finite");
    whole = Value(*integer);
  }
  return runtime.Apply(BinaryOperator::kDiv, whole, scale);
}

// ---- Text ----

Result<Value> DoString(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(StringPtr text, SoftText(runtime, self));
  return Value(std::move(text));
}

template <StringPtr (*map)(const MarkedString&)>
Result<Value> DoMapText(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(const StringPtr text, SoftText(runtime, self));
  NIBBLE_TRY(runtime.Spend(static_cast<int64_t>(text->size())));
  NIBBLE_TRY(runtime.Allocate(text->size()));
  return Value(map(*text));
}

Result<Value> DoTrim(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr text, SoftText(runtime, self));
  return FindStringMethod("strip")->call(runtime, Value(text), args);
}

// Words start after white space, hyphens and opening brackets.
Result<Value> DoTitle(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(const StringPtr text, SoftText(runtime, self));
  StringBuilder out;
  size_t word = 0;
  const auto starts_word = [&](size_t at) {
    const char32_t c = CodePointAt(text->bytes, at);
    return IsSpace(c) || (c < 0x80 && std::string_view("-({[<").find(static_cast<char>(c)) !=
                                          std::string_view::npos);
  };
  const auto flush = [&](size_t end) {
    if (word == end) return;
    const size_t first = word + CodePointLength(text->bytes, word);
    out.AppendDerived(UpperOf(CodePointAt(text->bytes, word)), *text, word, first);
    out.Append(*Lower(*Slice(*text, first, end)));
  };
  NIBBLE_TRY(runtime.Spend(static_cast<int64_t>(text->size())));
  for (size_t at = 0; at < text->size();) {
    const size_t next = at + CodePointLength(text->bytes, at);
    if (starts_word(at)) {
      flush(at);
      out.AppendSlice(*text, at, next);
      word = next;
    }
    at = next;
  }
  flush(text->size());
  return runtime.MakeString(out);
}

Result<Value> DoReplace(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr text, runtime.Str(self));
  NIBBLE_ASSIGN(const StringPtr old, runtime.Str(args[0]));
  NIBBLE_ASSIGN(const StringPtr with, runtime.Str(args[1]));
  Integer count = -1;
  if (args.Has(2) && !args[2].IsNone()) {
    NIBBLE_ASSIGN(count, ToInteger(args[2], "the count"));
  }
  return Replace(runtime, *text, *old, *with, count);
}

Result<Value> DoSafe(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(const StringPtr text, SoftText(runtime, self));
  StringBuilder out;
  out.Append(*text);
  return runtime.MakeString(out, true);
}

Result<Value> DoEscape(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(const StringPtr text, SoftText(runtime, self));
  if (text->markup) return self;
  NIBBLE_TRY(runtime.Allocate(text->size() * 5));
  return Value(EscapeHtml(*text));
}

Result<Value> DoForceEscape(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(const StringPtr text, runtime.Str(self));
  NIBBLE_TRY(runtime.Allocate(text->size() * 5));
  return Value(EscapeHtml(*text));
}

Result<Value> DoIndent(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr text, ToText(self, "what indent works on"));
  StringPtr indention = TrustedString("    ");
  if (args.Has(0)) {
    if (args[0].IsString()) {
      indention = args[0].string_ptr();
    } else {
      NIBBLE_ASSIGN(const Integer width, ToInteger(args[0], "the width of indent"));
      if (width > static_cast<Integer>(kMaxStringBytes)) {
        return Fail(Code::kInvalidArgument, "indent: the width is too large");
      }
      indention = TrustedString(std::string(static_cast<size_t>(std::max<Integer>(width, 0)), ' '));
    }
  }
  const bool first = args.Has(1) && IsTrue(args[1]);
  const bool blank = args.Has(2) && IsTrue(args[2]);
  StringBuilder with_newline;
  with_newline.Append(*text);
  with_newline.Append("\n");
  const StringPtr source = with_newline.Finish();
  NIBBLE_TRY(runtime.Allocate(source->size()));
  const std::vector<SplitAt> lines = SplitLines(*source, false);
  StringBuilder out;
  if (first) out.Append(*indention);
  for (size_t i = 0; i < lines.size() && !out.overflowed(); ++i) {
    if (i > 0) out.Append("\n");
    if (i > 0 && (blank || lines[i].begin < lines[i].end)) out.Append(*indention);
    out.AppendSlice(*source, lines[i].begin, lines[i].end);
  }
  return runtime.MakeString(out, text->markup);
}

Result<Value> DoTruncate(Runtime& runtime, const Value& self, Args& args) {
  const std::optional<size_t> size = LengthOf(self);
  if (!size) return Fail(Code::kInvalidArgument, "truncate: '{}' has no length", TypeName(self));
  NIBBLE_TRY(runtime.SpendOn(self));
  Integer length = 255, leeway = 5;
  StringPtr end = TrustedString("...");
  if (args.Has(0)) {
    NIBBLE_ASSIGN(length, ToInteger(args[0], "the length"));
  }
  if (args.Has(2)) {
    NIBBLE_ASSIGN(end, ToText(args[2], "the end"));
  }
  if (args.Has(3) && !args[3].IsNone()) {
    NIBBLE_ASSIGN(leeway, ToInteger(args[3], "the leeway"));
  }
  const auto end_length = static_cast<Integer>(CountCodePoints(*end));
  if (length < end_length || leeway < 0) {
    return Fail(Code::kInvalidArgument,
                "truncate: the length must be at least that of the end ({}), the leeway positive",
                static_cast<int64_t>(end_length));
  }
  if (static_cast<Integer>(*size) <= length + leeway) return self;
  NIBBLE_ASSIGN(const StringPtr text, ToText(self, "what truncate shortens"));
  size_t cut = ByteOffset(*text, static_cast<size_t>(length - end_length));
  const bool kill_words = args.Has(1) && IsTrue(args[1]);
  if (!kill_words) {
    const size_t space = cut == 0 ? std::string::npos : text->bytes.rfind(' ', cut - 1);
    if (space != std::string::npos) cut = space;
  }
  return runtime.Add(Value(Slice(*text, 0, cut)), Value(end));
}

Result<Value> DoCenter(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr text, SoftText(runtime, self));
  Integer width = 80;
  if (args.Has(0)) {
    NIBBLE_ASSIGN(width, ToInteger(args[0], "the width"));
  }
  return Pad(runtime, *text, width, *TrustedString(" "), true, true);
}

Result<Value> DoFormat(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr text, SoftText(runtime, self));
  Arguments& values = args.rest;
  if (!values.positional.empty() && !values.named.empty()) {
    return Fail(Code::kInvalidArgument, "format takes values by position or by name, not both");
  }
  if (values.named.empty()) {
    NIBBLE_ASSIGN(const Value tuple,
                  runtime.MakeList(std::move(values.positional), Sequence::Type::kTuple));
    return FormatPercent(runtime, *text, tuple);
  }
  Dict dict;
  for (auto& [name, value] : values.named) dict.Set(Value::String(name), std::move(value));
  NIBBLE_ASSIGN(const Value mapping, runtime.MakeDict(std::move(dict)));
  return FormatPercent(runtime, *text, mapping);
}

bool IsWordCharacter(char32_t c) { return c == '_' || IsAlpha(c) || IsNumeric(c); }

Result<Value> DoWordCount(Runtime& runtime, const Value& self, Args&) {
  NIBBLE_ASSIGN(const StringPtr text, SoftText(runtime, self));
  NIBBLE_TRY(runtime.Spend(static_cast<int64_t>(text->size())));
  size_t words = 0;
  bool inside = false;
  for (size_t at = 0; at < text->size(); at += CodePointLength(text->bytes, at)) {
    const bool word = IsWordCharacter(CodePointAt(text->bytes, at));
    if (word && !inside) ++words;
    inside = word;
  }
  return Value(words);
}

// Percent-encoding; in a query a space is '+' and '/' is encoded too.
Result<Value> PercentEncode(Runtime& runtime, const Value& value, bool query) {
  NIBBLE_ASSIGN(const StringPtr text, runtime.Str(value));
  NIBBLE_TRY(runtime.Allocate(text->size() * 3));
  const std::string_view safe = query ? "_.-~" : "_.-~/";
  StringBuilder out;
  for (size_t at = 0; at < text->size(); ++at) {
    const auto byte = static_cast<unsigned char>(text->bytes[at]);
    const bool plain = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
                       (byte >= '0' && byte <= '9') ||
                       safe.find(static_cast<char>(byte)) != std::string_view::npos;
    if (plain) {
      out.AppendSlice(*text, at, at + 1);
    } else {
      const std::string escaped = query && byte == ' ' ? "+" : fmt::format("%{:02X}", byte);
      out.AppendDerived(escaped, *text, at, at + 1);
    }
  }
  return runtime.MakeString(out);
}

// Text, or the pairs of a query.
Result<Value> DoUrlEncode(Runtime& runtime, const Value& self, Args&) {
  if (self.IsString() || !IsIterable(self)) return PercentEncode(runtime, self, false);
  Value source = self;
  if (self.Is(Kind::kDict)) {
    source =
        Value(std::make_shared<const DictView>(DictView{self.dict_ptr(), DictView::Type::kItems}));
  }
  NIBBLE_ASSIGN(const Values pairs, runtime.Items(source));
  StringBuilder out;
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (!IsIterable(pairs[i])) {
      return Fail(Code::kInvalidArgument, "urlencode needs pairs, not '{}'", TypeName(pairs[i]));
    }
    NIBBLE_ASSIGN(const Values pair, runtime.Items(pairs[i]));
    if (pair.size() != 2) return Fail(Code::kInvalidArgument, "urlencode needs pairs");
    NIBBLE_ASSIGN(const Value key, PercentEncode(runtime, pair[0], true));
    NIBBLE_ASSIGN(const Value value, PercentEncode(runtime, pair[1], true));
    if (i > 0) out.Append("&");
    out.Append(key.string());
    out.Append("=");
    out.Append(value.string());
  }
  return runtime.MakeString(out);
}

// ---- JSON ----

Status ReadSeparators(const Value& separators, JsonStyle& style) {
  if (!separators.Is(Kind::kSequence) || separators.sequence().items.size() != 2) {
    return Fail(Code::kInvalidArgument, "tojson: separators must be a pair of strings");
  }
  NIBBLE_ASSIGN(const StringPtr item, ToText(separators.sequence().items[0], "a separator"));
  NIBBLE_ASSIGN(const StringPtr key, ToText(separators.sequence().items[1], "a separator"));
  style.item_separator = item->bytes;
  style.key_separator = key->bytes;
  return {};
}

Result<Value> DoToJson(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_TRY(runtime.SpendOn(self));
  JsonStyle style;
  style.ensure_ascii = args.Has(0) && IsTrue(args[0]);
  if (args.Has(1) && !args[1].IsNone()) {
    if (args[1].IsString()) {
      style.indent = args[1].string().bytes;
    } else {
      NIBBLE_ASSIGN(const Integer width, ToInteger(args[1], "the indent of tojson"));
      constexpr Integer kMaxIndent = 1024;
      if (width > kMaxIndent)
        return Fail(Code::kInvalidArgument, "tojson: the indent is too large");
      style.indent = std::string(static_cast<size_t>(std::max<Integer>(width, 0)), ' ');
    }
    style.item_separator = ",";
  }
  if (args.Has(2) && !args[2].IsNone()) NIBBLE_TRY(ReadSeparators(args[2], style));
  style.sort_keys = args.Has(3) && IsTrue(args[3]);
  StringBuilder out;
  NIBBLE_TRY(AppendJson(out, self, style));
  return runtime.MakeString(out);
}

// ---- Other ----

Result<Value> DoDefault(Runtime&, const Value& self, Args& args) {
  const bool replace = self.IsUndefined() || (args.Has(1) && IsTrue(args[1]) && !IsTrue(self));
  if (!replace) return self;
  return args.Has(0) ? args[0] : Value::String("");
}

// Attributes alone, never items.
Result<Value> DoAttr(Runtime& runtime, const Value& self, Args& args) {
  NIBBLE_ASSIGN(const StringPtr name, ToText(args[0], "the name of the attribute"));
  if (self.Is(Kind::kDict) && FindDictMethod(name->bytes) == nullptr) {
    return Value::MakeUndefined(fmt::format("'dict object' has no attribute '{}'", name->bytes));
  }
  return runtime.GetAttribute(self, name->bytes);
}

constexpr Builtin kFilters[] = {
    {"abs", "", DoAbs},
    {"attr", "name", DoAttr},
    {"capitalize", "", DoMapText<Capitalize>},
    {"center", "?width", DoCenter},
    {"d", "?default_value ?boolean", DoDefault},
    {"default", "?default_value ?boolean", DoDefault},
    {"e", "", DoEscape},
    {"escape", "", DoEscape},
    {"float", "?default", DoFloat},
    {"forceescape", "", DoForceEscape},
    {"format", "*", DoFormat},
    {"indent", "?width ?first ?blank", DoIndent},
    {"int", "?default ?base", DoInt},
    {"lower", "", DoMapText<Lower>},
    {"replace", "old new ?count", DoReplace},
    {"round", "?precision ?method", DoRound},
    {"safe", "", DoSafe},
    {"string", "", DoString},
    {"title", "", DoTitle},
    {"tojson", "?ensure_ascii ?indent ?separators ?sort_keys", DoToJson},
    {"trim", "?chars", DoTrim},
    {"truncate", "?length ?killwords ?end ?leeway", DoTruncate},
    {"upper", "", DoMapText<Upper>},
    {"urlencode", "", DoUrlEncode},
    {"wordcount", "", DoWordCount},
};

}  // namespace

const Builtin* FindFilter(std::string_view name) {
  const auto* at = std::find_if(std::begin(kFilters), std::end(kFilters),
                                [name](const Builtin& builtin) { return builtin.name == name; });
  return at == std::end(kFilters) ? FindSequenceFilter(name) : at;
}

}  // namespace nibble::text::jinja
