#include "text/jinja/python_text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "text/jinja/unicode.h"

namespace nibble::text::jinja {
namespace {

void AppendStringRepr(StringBuilder& out, const MarkedString& text) {
  const bool has_single = text.bytes.find('\'') != std::string::npos;
  const bool has_double = text.bytes.find('"') != std::string::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  if (text.markup) out.Append("Markup(");
  out.Append({&quote, 1});
  for (size_t at = 0; at < text.size();) {
    const size_t end = at + CodePointLength(text.bytes, at);
    const char32_t c = CodePointAt(text.bytes, at);
    std::string escaped;
    if (c == '\\' || c == static_cast<unsigned char>(quote)) {
      escaped = {'\\', static_cast<char>(c)};
    } else if (c == '\n') {
      escaped = "\\n";
    } else if (c == '\r') {
      escaped = "\\r";
    } else if (c == '\t') {
      escaped = "\\t";
    } else if (!IsPrintable(c)) {
      escaped = c < 0x100     ? fmt::format("\\x{:02x}", static_cast<uint32_t>(c))
                : c < 0x10000 ? fmt::format("\\u{:04x}", static_cast<uint32_t>(c))
                              : fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
    if (escaped.empty()) {
      out.AppendSlice(text, at, end);
    } else {
      out.AppendDerived(escaped, text, at, end);
    }
    at = end;
  }
  out.Append({&quote, 1});
  if (text.markup) out.Append(")");
}

void AppendItems(StringBuilder& out, const Values& items) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.Append(", ");
    AppendRepr(out, items[i]);
  }
}

void AppendSequenceRepr(StringBuilder& out, const Sequence& sequence) {
  const bool list = sequence.type == Sequence::Type::kList;
  out.Append(list ? "[" : "(");
  AppendItems(out, sequence.items);
  if (!list && sequence.items.size() == 1) out.Append(",");
  out.Append(list ? "]" : ")");
}

void AppendDictRepr(StringBuilder& out, const Dict& dict) {
  out.Append("{");
  bool first = true;
  for (const auto& [key, value] : dict.entries()) {
    if (!first) out.Append(", ");
    first = false;
    AppendRepr(out, key);
    out.Append(": ");
    AppendRepr(out, value);
  }
  out.Append("}");
}

void AppendViewRepr(StringBuilder& out, const Value& value) {
  out.Append(TypeName(value));
  out.Append("([");
  bool first = true;
  for (const auto& [key, item] : value.view().dict->entries()) {
    if (!first) out.Append(", ");
    first = false;
    switch (value.view().type) {
      case DictView::Type::kKeys:
        AppendRepr(out, key);
        break;
      case DictView::Type::kValues:
        AppendRepr(out, item);
        break;
      case DictView::Type::kItems:
        out.Append("(");
        AppendRepr(out, key);
        out.Append(", ");
        AppendRepr(out, item);
        out.Append(")");
        break;
    }
  }
  out.Append("])");
}

std::string RangeText(const Range& range) {
  const std::string start = IntegerText(range.start);
  const std::string stop = IntegerText(range.At(range.length));
  if (range.step == 1) return fmt::format("range({}, {})", start, stop);
  return fmt::format("range({}, {}, {})", start, stop, IntegerText(range.step));
}

void AppendJsonString(StringBuilder& out, const MarkedString& text, bool ensure_ascii) {
  out.Append("\"");
  size_t plain = 0;  // start of the run that needs no escape
  for (size_t at = 0; at < text.size();) {
    const size_t end = at + CodePointLength(text.bytes, at);
    const char32_t c = CodePointAt(text.bytes, at);
    std::string escaped;
    switch (c) {
      case '"':
        escaped = "\\\"";
        break;
      case '\\':
        escaped = "\\\\";
        break;
      case '\n':
        escaped = "\\n";
        break;
      case '\r':
        escaped = "\\r";
        break;
      case '\t':
        escaped = "\\t";
        break;
      case '\f':
        escaped = "\\f";
        break;
      case '\b':
        escaped = "\\b";
        break;
      default:
        if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
          escaped = fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
        } else if (ensure_ascii && c >= 0x10000) {
          const uint32_t pair = static_cast<uint32_t>(c) - 0x10000;
          escaped =
              fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (pair >> 10), 0xDC00 + (pair & 0x3FF));
        }
    }
    if (!escaped.empty()) {
      out.AppendSlice(text, plain, at);
      out.AppendDerived(escaped, text, at, end);
      plain = end;
    }
    at = end;
  }
  out.AppendSlice(text, plain, text.size());
  out.Append("\"");
}

std::string JsonFloat(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return FloatText(value);
}

class JsonWriter {
 public:
  JsonWriter(StringBuilder& out, const JsonStyle& style) : out_(out), style_(style) {}

  Status Write(const Value& value) {
    switch (value.kind()) {
      case Kind::kNone:
        out_.Append("null");
        return {};
      case Kind::kBool:
        out_.Append(value.boolean() ? "true" : "false");
        return {};
      case Kind::kInt:
        out_.Append(IntegerText(value.integer()));
        return {};
      case Kind::kFloat:
        out_.Append(JsonFloat(value.number()));
        return {};
      case Kind::kString:
        AppendJsonString(out_, value.string(), style_.ensure_ascii);
        return {};
      case Kind::kSequence:
        return WriteList(value.sequence().items);
      case Kind::kDict:
        return WriteDict(value.dict());
      default:
        return Fail(Code::kInvalidArgument, "tojson: an object of type {} is not JSON serializable",
                    TypeName(value));
    }
  }

 private:
  void NewLine() {
    if (!style_.indent) return;
    out_.Append("\n");
    for (int i = 0; i < level_; ++i) out_.Append(*style_.indent);
  }

  Status WriteList(const Values& items) {
    if (items.empty()) {
      out_.Append("[]");
      return {};
    }
    out_.Append("[");
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.Append(style_.item_separator);
      NewLine();
      NIBBLE_TRY(Write(items[i]));
    }
    --level_;
    NewLine();
    out_.Append("]");
    return {};
  }

  Status WriteDict(const Dict& dict) {
    if (dict.size() == 0) {
      out_.Append("{}");
      return {};
    }
    std::vector<const Dict::Entry*> entries;
    for (const Dict::Entry& entry : dict.entries()) entries.push_back(&entry);
    if (style_.sort_keys) NIBBLE_TRY(SortByKey(entries));
    out_.Append("{");
    ++level_;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_.Append(style_.item_separator);
      NewLine();
      NIBBLE_TRY(WriteKey(entries[i]->first));
      out_.Append(style_.key_separator);
      NIBBLE_TRY(Write(entries[i]->second));
    }
    --level_;
    NewLine();
    out_.Append("}");
    return {};
  }

  static Status SortByKey(std::vector<const Dict::Entry*>& entries) {
    Status status;
    std::stable_sort(entries.begin(), entries.end(), [&](const auto* left, const auto* right) {
      auto sign = Compare(left->first, right->first);
      if (!sign && status) status = tl::unexpected<Error>(sign.error());
      return sign && *sign && **sign < 0;
    });
    return status;
  }

  Status WriteKey(const Value& key) {
    switch (key.kind()) {
      case Kind::kString:
        AppendJsonString(out_, key.string(), style_.ensure_ascii);
        return {};
      case Kind::kNone:
      case Kind::kBool:
      case Kind::kInt:
      case Kind::kFloat:
        out_.Append("\"");
        NIBBLE_TRY(Write(key));
        out_.Append("\"");
        return {};
      default:
        return Fail(Code::kInvalidArgument,
                    "tojson: a key must be str, int, float, bool or None, not {}", TypeName(key));
    }
  }

  StringBuilder& out_;
  const JsonStyle& style_;
  int level_ = 0;
};

std::string_view StripSpaces(std::string_view text) {
  while (!text.empty() && IsSpace(CodePointAt(text, 0))) {
    text.remove_prefix(CodePointLength(text, 0));
  }
  while (!text.empty()) {
    const size_t last = PreviousCodePoint(text, text.size());
    if (!IsSpace(CodePointAt(text, last))) break;
    text = text.substr(0, last);
  }
  return text;
}

int DigitValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'z' ? lower - 'a' + 10 : 99;
}

// "0x", "0o" or "0b" in front, where the base allows it; base 0 takes it from there.
bool TakeBasePrefix(std::string_view& text, int& base) {
  if (text.size() >= 2 && text[0] == '0') {
    const char letter = static_cast<char>(text[1] | 0x20);
    const int named = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
    if (named != 0 && (base == named || base == 0)) {
      base = named;
      text.remove_prefix(2);
      return true;
    }
  }
  return false;
}

}  // namespace

std::string IntegerText(Integer value) {
  if (value == 0) return "0";
  const bool negative = value < 0;
  auto rest =
      negative ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
  std::string text;
  for (; rest != 0; rest /= 10) text += static_cast<char>('0' + static_cast<int>(rest % 10));
  if (negative) text += '-';
  std::reverse(text.begin(), text.end());
  return text;
}

std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[40];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string_view text(buffer, static_cast<size_t>(end - buffer));
  const size_t e = text.find('e');
  const int exponent = std::stoi(std::string(text.substr(e + 1)));
  if (exponent < -4 || exponent >= 16) {
    return fmt::format("{}e{}{:02}", text.substr(0, e), exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  const bool negative = text[0] == '-';
  std::string digits;
  for (const char c : text.substr(negative ? 1 : 0, e - (negative ? 1 : 0))) {
    if (c != '.') digits += c;
  }
  std::string out = negative ? "-" : "";
  if (exponent < 0) {
    out += "0.";
    out.append(static_cast<size_t>(-exponent - 1), '0');
    return out += digits;
  }
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) {
    digits.resize(whole, '0');
    return out += digits + ".0";
  }
  return out += digits.substr(0, whole) + "." + digits.substr(whole);
}

void AppendStr(StringBuilder& out, const Value& value) {
  if (value.IsUndefined()) return;
  if (value.IsString()) {
    out.Append(value.string());
  } else {
    AppendRepr(out, value);
  }
}

void AppendRepr(StringBuilder& out, const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      out.Append("Undefined");
      return;
    case Kind::kNone:
      out.Append("None");
      return;
    case Kind::kBool:
      out.Append(value.boolean() ? "True" : "False");
      return;
    case Kind::kInt:
      out.Append(IntegerText(value.integer()));
      return;
    case Kind::kFloat:
      out.Append(FloatText(value.number()));
      return;
    case Kind::kString:
      AppendStringRepr(out, value.string());
      return;
    case Kind::kSequence:
      AppendSequenceRepr(out, value.sequence());
      return;
    case Kind::kDict:
      AppendDictRepr(out, value.dict());
      return;
    case Kind::kRange:
      out.Append(RangeText(value.range()));
      return;
    case Kind::kDictView:
      AppendViewRepr(out, value);
      return;
    default:  // Python prints an address here; nothing can depend on it
      out.Append(fmt::format("<{} object>", TypeName(value)));
  }
}

StringPtr ToStr(const Value& value) {
  if (value.IsString() && !value.string().markup) return value.string_ptr();
  StringBuilder out;
  AppendStr(out, value);
  return out.Finish();
}

Status AppendJson(StringBuilder& out, const Value& value, const JsonStyle& style) {
  return JsonWriter(out, style).Write(value);
}

std::optional<Integer> ParseInteger(std::string_view text, int base) {
  text = StripSpaces(text);
  bool negative = false;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  const bool guess = base == 0;
  bool after_digit = TakeBasePrefix(text, base);  // an underscore may follow a prefix
  if (guess && base == 0) {
    base = 10;
    // Without a prefix a leading zero is allowed in zero alone.
    if (text.size() > 1 && text[0] == '0' && text.find_first_not_of("0_") != text.npos) {
      return std::nullopt;
    }
  }
  if (text.empty()) return std::nullopt;
  unsigned __int128 value = 0;
  constexpr auto kMax = static_cast<unsigned __int128>(std::numeric_limits<Integer>::max());
  for (const char c : text) {
    if (c == '_' && after_digit) {
      after_digit = false;
      continue;
    }
    const int digit = DigitValue(c);
    if (digit >= base ||
        value > (kMax - static_cast<unsigned>(digit)) / static_cast<unsigned>(base)) {
      return std::nullopt;
    }
    value = value * static_cast<unsigned>(base) + static_cast<unsigned>(digit);
    after_digit = true;
  }
  if (!after_digit) return std::nullopt;
  return negative ? -static_cast<Integer>(value) : static_cast<Integer>(value);
}

std::optional<double> ParseFloat(std::string_view text) {
  text = StripSpaces(text);
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto is_digit = [&](size_t at) { return at < text.size() && DigitValue(text[at]) < 10; };
    if (text[i] != '_') {
      digits += text[i];
    } else if (i == 0 || !is_digit(i - 1) || !is_digit(i + 1)) {
      return std::nullopt;
    }
  }
  std::string_view rest = digits;
  bool negative = false;
  if (!rest.empty() && (rest[0] == '-' || rest[0] == '+')) {
    negative = rest[0] == '-';
    rest.remove_prefix(1);
  }
  if (rest.empty() || rest[0] == '-' || rest.find_first_of("xXpP(") != rest.npos) {
    return std::nullopt;
  }
  double value = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (end != rest.data() + rest.size()) return std::nullopt;
  if (error == std::errc::result_out_of_range) {
    value = std::strtod(std::string(rest).c_str(), nullptr);  // Python gives inf or 0 here
  } else if (error != std::errc()) {
    return std::nullopt;
  }
  return negative ? -value : value;
}

}  // namespace nibble::text::jinja
