// Python's two ways to format text: "%s" % values and "{}".format(values).

#include <algorithm>
#include <cmath>
#include <optional>

#include "text/jinja/python_text.h"
#include "text/jinja/runtime.h"
#include "text/jinja/unicode.h"

namespace nibble::text::jinja {
namespace {

constexpr Integer kMaxWidth = 1 << 20;

tl::unexpected<Error> TooWide() {
  return Fail(Code::kInvalidArgument, "format: a width or precision is over {}",
              static_cast<int64_t>(kMaxWidth));
}

// One field, in either language.
struct Field {
  char fill = ' ';
  char align = 0;  // '<', '>', '^', '='
  char sign = '-';
  bool alternate = false;
  bool zero = false;
  char grouping = 0;  // ',' or '_'
  int width = 0;
  int precision = -1;
  char type = 0;
};

std::string InBase(unsigned __int128 value, unsigned base, bool upper) {
  const char* const symbols = upper ? "0123456789ABCDEF" : "0123456789abcdef";
  std::string digits;
  do {
    // A statement of its own: under UBSan g++ 12 miscompiles the division inside the subscript.
    const auto digit = static_cast<unsigned>(value % base);
    digits += symbols[digit];
    value /= base;
  } while (value != 0);
  std::reverse(digits.begin(), digits.end());
  return digits;
}

std::string Grouped(const std::string& digits, char separator, size_t size) {
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % size == 0) out += separator;
    out += digits[i];
  }
  return out;
}

// Sign and padding around the digits of a number.
std::string PadNumber(const Field& field, bool negative, const std::string& prefix,
                      const std::string& digits) {
  std::string head = negative ? "-" : field.sign == '+' ? "+" : field.sign == ' ' ? " " : "";
  head += prefix;
  const size_t length = head.size() + digits.size();
  const auto width = static_cast<size_t>(field.width);
  if (length >= width) return head + digits;
  const std::string padding(width - length, field.zero && field.align == 0 ? '0' : field.fill);
  const char align = field.align != 0 ? field.align : field.zero ? '=' : '>';
  if (align == '<') return head + digits + padding;
  if (align == '=') return head + padding + digits;
  if (align == '^') {
    const size_t before = padding.size() / 2;
    return padding.substr(0, before) + head + digits + padding.substr(before);
  }
  return padding + head + digits;
}

std::string FormatInteger(const Field& field, Integer value) {
  const bool negative = value < 0;
  const auto magnitude =
      negative ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
  const unsigned base = field.type == 'x' || field.type == 'X' ? 16
                        : field.type == 'o'                    ? 8
                        : field.type == 'b'                    ? 2
                                                               : 10;
  std::string digits = InBase(magnitude, base, field.type == 'X');
  if (field.precision > static_cast<int>(digits.size())) {
    digits.insert(0, static_cast<size_t>(field.precision) - digits.size(), '0');
  }
  if (field.grouping != 0) digits = Grouped(digits, field.grouping, base == 10 ? 3 : 4);
  std::string prefix;
  if (field.alternate && base != 10) prefix = std::string("0") + field.type;
  return PadNumber(field, negative, prefix, digits);
}

// `general`: format(x, "") of a float with a precision, which keeps one digit after the point.
std::string FormatFloat(const Field& field, double value) {
  const bool negative = std::signbit(value) && !std::isnan(value);
  const double magnitude = std::fabs(value);
  std::string digits;
  const char type = field.type == 0 ? 'g' : field.type;
  const int precision = field.precision < 0 ? 6 : field.precision;
  if (!std::isfinite(value)) {
    digits = std::isnan(value) ? "nan" : "inf";
    if (type == 'F' || type == 'E' || type == 'G') {
      for (char& c : digits) c = static_cast<char>(c - 32);
    }
  } else if (type == '%') {
    digits = fmt::format("{:.{}f}%", magnitude * 100, precision);
  } else if (field.type == 0 && field.precision < 0) {
    digits = FloatText(magnitude);
  } else {
    const std::string pattern =
        fmt::format("{{:{}.{}{}}}", field.alternate ? "#" : "",
                    (type == 'g' || type == 'G') && precision == 0 ? 1 : precision, type);
    digits = fmt::format(fmt::runtime(pattern), magnitude);
    if (field.type == 0 && digits.find_first_of(".e") == std::string::npos) digits += ".0";
  }
  if (field.grouping != 0) {
    const size_t end = std::min(digits.find_first_not_of("0123456789"), digits.size());
    digits = Grouped(digits.substr(0, end), field.grouping, 3) + digits.substr(end);
  }
  return PadNumber(field, negative, "", digits);
}

// Text cut to the precision and padded, marks kept.
void AppendText(StringBuilder& out, const Field& field, const MarkedString& text,
                char default_align) {
  size_t length = CountCodePoints(text);
  size_t end = text.size();
  if (field.precision >= 0 && static_cast<size_t>(field.precision) < length) {
    length = static_cast<size_t>(field.precision);
    end = ByteOffset(text, length);
  }
  const size_t width = static_cast<size_t>(field.width);
  const size_t missing = width > length ? width - length : 0;
  const char align = field.align != 0 ? field.align : default_align;
  const size_t before = align == '>' ? missing : align == '^' ? missing / 2 : 0;
  out.Append(std::string(before, field.fill));
  out.AppendSlice(text, 0, end);
  out.Append(std::string(missing - before, field.fill));
}

std::optional<int> TakeNumber(std::string_view text, size_t& at) {
  Integer value = 0;
  const size_t begin = at;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    value = std::min<Integer>(value * 10 + (text[at++] - '0'), kMaxWidth + 1);
  }
  if (at == begin) return std::nullopt;
  return static_cast<int>(value);
}

// ---- text % values ----

class PercentFormatter {
 public:
  PercentFormatter(Runtime& runtime, const MarkedString& format, const Value& values)
      : runtime_(runtime), format_(format), values_(values) {
    is_tuple_ = values.Is(Kind::kSequence) && values.sequence().type != Sequence::Type::kList;
  }

  Result<Value> Run() {
    const std::string_view text = format_.bytes;
    size_t plain = 0;
    while (true) {
      const size_t percent = text.find('%', plain);
      if (percent == text.npos) break;
      out_.AppendSlice(format_, plain, percent);
      at_ = percent + 1;
      NIBBLE_TRY(RunField());
      plain = at_;
    }
    out_.AppendSlice(format_, plain, text.size());
    const bool all_used =
        is_tuple_ ? next_ >= values_.sequence().items.size() : next_ > 0 || LooksLikeMapping();
    if (!all_used) {
      return Fail(Code::kInvalidArgument, "format: not all values were used by the text");
    }
    return runtime_.MakeString(out_, format_.markup);
  }

 private:
  // Python asks that all values are used, except of what has a [ ] operator and is no string.
  bool LooksLikeMapping() const {
    return values_.Is(Kind::kDict) || values_.Is(Kind::kSequence) || values_.Is(Kind::kRange) ||
           values_.IsUndefined();
  }

  char Peek() const { return at_ < format_.size() ? format_.bytes[at_] : '\0'; }

  Result<Value> NextValue() {
    if (!is_tuple_) {
      if (next_++ > 0) return Fail(Code::kInvalidArgument, "format: not enough values");
      return values_;
    }
    const Values& items = values_.sequence().items;
    if (next_ >= items.size()) return Fail(Code::kInvalidArgument, "format: not enough values");
    return items[next_++];
  }

  Result<int> WidthOrStar() {
    if (Peek() != '*') return TakeNumber(format_.bytes, at_).value_or(0);
    ++at_;
    NIBBLE_ASSIGN(const Value value, NextValue());
    NIBBLE_ASSIGN(const Integer width, ToInteger(value, "the width"));
    if (width > kMaxWidth || width < -kMaxWidth) return TooWide();
    return static_cast<int>(width);
  }

  Status RunField() {
    std::optional<Value> value;
    if (Peek() == '(') {
      const size_t close = format_.bytes.find(')', at_);
      if (close == std::string::npos || !values_.Is(Kind::kDict)) {
        return Fail(Code::kInvalidArgument, "format: %(name) needs a mapping");
      }
      const std::string key = format_.bytes.substr(at_ + 1, close - at_ - 1);
      const Value* found = values_.dict().Find(key);
      if (found == nullptr)
        return Fail(Code::kInvalidArgument, "format: there is no value '{}'", key);
      value = *found;
      at_ = close + 1;
    }
    Field field;
    for (; std::string_view("-+ #0").find(Peek()) != std::string_view::npos && Peek() != '\0';
         ++at_) {
      if (Peek() == '-') field.align = '<';
      if (Peek() == '+') field.sign = '+';
      if (Peek() == ' ' && field.sign != '+') field.sign = ' ';
      if (Peek() == '#') field.alternate = true;
      if (Peek() == '0') field.zero = true;
    }
    NIBBLE_ASSIGN(field.width, WidthOrStar());
    if (field.width < 0) {
      field.align = '<';
      field.width = -field.width;
    }
    if (Peek() == '.') {
      ++at_;
      NIBBLE_ASSIGN(field.precision, WidthOrStar());
      field.precision = std::max(field.precision, 0);
    }
    if (field.width > kMaxWidth || field.precision > kMaxWidth) return TooWide();
    while (Peek() == 'l' || Peek() == 'h' || Peek() == 'L') ++at_;
    field.type = Peek();
    ++at_;
    if (field.type == '%') {
      out_.Append("%");
      return {};
    }
    if (!value) {
      NIBBLE_ASSIGN(value, NextValue());
    }
    return AppendField(field, *value);
  }

  Status AppendField(Field field, const Value& value) {
    switch (field.type) {
      case 's':
      case 'r':
      case 'a': {
        NIBBLE_TRY(runtime_.SpendOn(value));
        StringBuilder text;
        if (field.type == 's') {
          AppendStr(text, value);
        } else {
          AppendRepr(text, value);
        }
        StringPtr shown = text.Finish();
        if (format_.markup && !(value.IsString() && value.string().markup)) {
          shown = EscapeHtml(*shown);
        }
        AppendText(out_, field, *shown, '>');
        return {};
      }
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o': {
        if (!value.IsNumber() ||
            (value.Is(Kind::kFloat) &&
             std::string_view("xXo").find(field.type) != std::string_view::npos)) {
          return NeedNumber(field, value);
        }
        if (value.Is(Kind::kFloat) && !(std::fabs(value.number()) < 1e38))
          return NeedNumber(field, value);
        const Integer integer =
            value.Is(Kind::kFloat) ? static_cast<Integer>(value.number()) : value.integer();
        if (field.type == 'i' || field.type == 'u') field.type = 'd';
        out_.Append(FormatInteger(field, integer));
        return {};
      }
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        if (!value.IsNumber()) return NeedNumber(field, value);
        if (field.precision > 400) return TooWide();
        out_.Append(FormatFloat(field, value.number()));
        return {};
      case 'c': {
        if (value.IsInteger() && value.integer() >= 0 && value.integer() <= 0x10FFFF) {
          AppendText(out_, field,
                     *TrustedString(EncodeUtf8(static_cast<char32_t>(value.integer()))), '>');
          return {};
        }
        if (value.IsString() && CountCodePoints(value.string()) == 1) {
          AppendText(out_, field, value.string(), '>');
          return {};
        }
        return Fail(Code::kInvalidArgument, "format: %c needs one character");
      }
      default:
        return Fail(Code::kInvalidArgument, "format: '%{}' is not supported", field.type);
    }
  }

  static tl::unexpected<Error> NeedNumber(const Field& field, const Value& value) {
    if (value.IsUndefined()) return Fail(Code::kInvalidArgument, "{}", *value.undefined().why);
    return Fail(Code::kInvalidArgument, "format: '%{}' needs a number, not '{}'", field.type,
                TypeName(value));
  }

  Runtime& runtime_;
  const MarkedString& format_;
  const Value& values_;
  bool is_tuple_ = false;
  size_t next_ = 0;
  size_t at_ = 0;
  StringBuilder out_;
};

// ---- text.format(...) ----

class BraceFormatter {
 public:
  BraceFormatter(Runtime& runtime, const MarkedString& format, const Arguments& arguments)
      : runtime_(runtime), format_(format), arguments_(arguments) {}

  Result<Value> Run() {
    NIBBLE_TRY(Format(0, format_.size(), 2, out_));
    return runtime_.MakeString(out_, format_.markup);
  }

 private:
  // Formats bytes [at, end) of the text; `levels` bounds fields in format specifications.
  Status Format(size_t at, size_t end, int levels, StringBuilder& out) {
    const std::string_view text = format_.bytes;
    while (at < end) {
      const size_t brace = std::min(text.find_first_of("{}", at), end);
      out.AppendSlice(format_, at, brace);
      if (brace >= end) return {};
      if (brace + 1 < end && text[brace + 1] == text[brace]) {
        out.AppendSlice(format_, brace, brace + 1);
        at = brace + 2;
        continue;
      }
      if (text[brace] == '}') return Fail(Code::kInvalidArgument, "format: a '}}' stands alone");
      size_t close = brace + 1;
      for (int open = 1; close < end; ++close) {
        if (text[close] == '{') ++open;
        if (text[close] == '}' && --open == 0) break;
      }
      if (close >= end) return Fail(Code::kInvalidArgument, "format: a '{{' is not closed");
      if (levels == 0) return Fail(Code::kInvalidArgument, "format: fields are nested too deeply");
      NIBBLE_TRY(FormatField(brace + 1, close, levels, out));
      at = close + 1;
    }
    return {};
  }

  // name[!conversion][:specification] in bytes [begin, end).
  Status FormatField(size_t begin, size_t end, int levels, StringBuilder& out) {
    const std::string_view text = std::string_view(format_.bytes).substr(0, end);
    size_t name_end = begin;
    bool in_brackets = false;
    while (name_end < end && (in_brackets || (text[name_end] != '!' && text[name_end] != ':'))) {
      if (text[name_end] == '[') in_brackets = true;
      if (text[name_end] == ']') in_brackets = false;
      ++name_end;
    }
    NIBBLE_ASSIGN(Value value, Lookup(text.substr(begin, name_end - begin)));
    size_t at = name_end;
    if (at < end && text[at] == '!') {
      const char conversion = at + 1 < end ? text[at + 1] : '\0';
      if (conversion != 's' && conversion != 'r') {
        return Fail(Code::kInvalidArgument, "format: '!{}' is not supported", conversion);
      }
      NIBBLE_TRY(runtime_.SpendOn(value));
      StringBuilder shown;
      if (conversion == 's') {
        AppendStr(shown, value);
      } else {
        AppendRepr(shown, value);
      }
      value = Value(shown.Finish());
      at += 2;
      if (at < end && text[at] != ':') return Fail(Code::kInvalidArgument, "format: expected ':'");
    }
    StringBuilder specification;
    if (at < end) NIBBLE_TRY(Format(at + 1, end, levels - 1, specification));
    return AppendValue(value, *specification.Finish(), out);
  }

  // "", "0", "name", each followed by .attribute and [key].
  Result<Value> Lookup(std::string_view name) {
    const size_t head_end = std::min(name.find_first_of(".["), name.size());
    const std::string_view head = name.substr(0, head_end);
    Value value;
    const bool digits = head.find_first_not_of("0123456789") == head.npos;
    if (digits) {
      const bool automatic = head.empty();
      if (numbering_ && *numbering_ != automatic) {
        return Fail(Code::kInvalidArgument, "format: numbered and unnumbered fields are mixed");
      }
      numbering_ = automatic;
      const Integer index =
          automatic ? static_cast<Integer>(next_++) : ParseInteger(head, 10).value_or(-1);
      if (index < 0 || index >= static_cast<Integer>(arguments_.positional.size())) {
        return Fail(Code::kInvalidArgument, "format: not enough values");
      }
      value = arguments_.positional[static_cast<size_t>(index)];
    } else {
      const auto found = std::find_if(arguments_.named.begin(), arguments_.named.end(),
                                      [&](const auto& argument) { return argument.first == head; });
      if (found == arguments_.named.end()) {
        return Fail(Code::kInvalidArgument, "format: there is no value '{}'", head);
      }
      value = found->second;
    }
    std::string_view rest = name.substr(head_end);
    while (!rest.empty()) {
      if (rest[0] == '.') {
        const size_t end = std::min(rest.find_first_of(".[", 1), rest.size());
        NIBBLE_ASSIGN(value, runtime_.GetAttribute(value, rest.substr(1, end - 1)));
        rest.remove_prefix(end);
        continue;
      }
      const size_t close = rest.find(']');
      if (rest[0] != '[' || close == rest.npos) {
        return Fail(Code::kInvalidArgument, "format: '{}' is not a field name", name);
      }
      const std::string_view key = rest.substr(1, close - 1);
      const bool index = !key.empty() && key.find_first_not_of("0123456789") == key.npos;
      const Value key_value =
          index ? Value(ParseInteger(key, 10).value_or(-1)) : Value::String(key);
      NIBBLE_ASSIGN(value, runtime_.GetItem(value, key_value));
      rest.remove_prefix(close + 1);
    }
    return value;
  }

  // [[fill]align][sign][#][0][width][grouping][.precision][type]
  Result<Field> ParseSpecification(std::string_view text) {
    Field field;
    size_t at = 0;
    const auto peek = [&](size_t ahead) {
      return at + ahead < text.size() ? text[at + ahead] : '\0';
    };
    const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
    if (is_align(peek(1))) {
      field.fill = peek(0);
      field.align = peek(1);
      at += 2;
    } else if (is_align(peek(0))) {
      field.align = text[at++];
    }
    if (peek(0) == '+' || peek(0) == '-' || peek(0) == ' ') field.sign = text[at++];
    if (peek(0) == '#') {
      field.alternate = true;
      ++at;
    }
    if (peek(0) == '0') {
      field.zero = true;
      if (field.align == 0) field.fill = '0';
      ++at;
    }
    field.width = TakeNumber(text, at).value_or(0);
    if (peek(0) == ',' || peek(0) == '_') field.grouping = text[at++];
    if (peek(0) == '.') {
      ++at;
      const std::optional<int> precision = TakeNumber(text, at);
      if (!precision) return Fail(Code::kInvalidArgument, "format: the precision is missing");
      field.precision = *precision;
    }
    if (at < text.size()) field.type = text[at++];
    if (at != text.size()) {
      return Fail(Code::kInvalidArgument, "format: '{}' is not a valid specification", text);
    }
    if (field.width > kMaxWidth || field.precision > kMaxWidth) return TooWide();
    return field;
  }

  Status AppendValue(const Value& value, const MarkedString& specification, StringBuilder& out) {
    NIBBLE_TRY(runtime_.SpendOn(value));
    const auto invalid = [&] {
      return Fail(Code::kInvalidArgument, "format: '{}' does not fit a value of type '{}'",
                  specification.bytes, TypeName(value));
    };
    NIBBLE_ASSIGN(Field field, ParseSpecification(specification.bytes));
    const bool boolean_as_text = value.Is(Kind::kBool) && specification.size() == 0;
    if (value.IsNumber() && !boolean_as_text) {
      const bool integer_type =
          field.type == 0 || std::string_view("dxXobn").find(field.type) != std::string_view::npos;
      const bool float_type =
          std::string_view("eEfFgG%").find(field.type) != std::string_view::npos;
      if (value.IsInteger() && integer_type && field.precision < 0) {
        out.Append(FormatInteger(field, value.integer()));
        return {};
      }
      if ((field.type != 0 && !float_type) || (value.IsInteger() && !float_type)) return invalid();
      if (field.precision > 400) return TooWide();
      out.Append(FormatFloat(field, value.number()));
      return {};
    }
    if (field.type != 0 && field.type != 's') return invalid();
    if (!value.IsString() && specification.size() > 0) return invalid();
    StringBuilder shown;
    AppendStr(shown, value);
    StringPtr text = shown.Finish();
    if (format_.markup && !(value.IsString() && value.string().markup)) text = EscapeHtml(*text);
    if (field.align == '=') return invalid();
    AppendText(out, field, *text, '<');
    return {};
  }

  Runtime& runtime_;
  const MarkedString& format_;
  const Arguments& arguments_;
  size_t next_ = 0;
  std::optional<bool> numbering_;  // true: automatic
  StringBuilder out_;
};

}  // namespace

Result<Value> FormatPercent(Runtime& runtime, const MarkedString& format, const Value& values) {
  NIBBLE_TRY(runtime.Allocate(format.size()));
  return PercentFormatter(runtime, format, values).Run();
}

Result<Value> FormatBraces(Runtime& runtime, const MarkedString& format,
                           const Arguments& arguments) {
  NIBBLE_TRY(runtime.Allocate(format.size()));
  return BraceFormatter(runtime, format, arguments).Run();
}

}  // namespace nibble::text::jinja
