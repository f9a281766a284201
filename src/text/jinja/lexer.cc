#include "text/jinja/lexer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "text/jinja/python_text.h"
#include "text/jinja/unicode.h"

namespace nibble::text::jinja {
namespace {

// All line ends become \n, and one at the end goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

std::string_view StripRight(std::string_view text) {
  while (!text.empty()) {
    const size_t last = PreviousCodePoint(text, text.size());
    if (!IsSpace(CodePointAt(text, last))) break;
    text = text.substr(0, last);
  }
  return text;
}

bool IsAllSpace(std::string_view text) { return StripRight(text).empty(); }

bool IsDigitChar(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  Result<std::vector<Token>> Run() {
    while (at_ < source_.size()) NIBBLE_TRY(ReadDataAndTag());
    Emit(Token::Type::kEnd, "");
    return std::move(tokens_);
  }

 private:
  enum class Tag { kVariable, kBlock, kComment };

  template <typename... Args>
  tl::unexpected<Error> Error(int line, fmt::format_string<Args...> format, Args&&... args) const {
    return Fail(Code::kInvalidArgument, "line {}: {}", line,
                fmt::format(format, std::forward<Args>(args)...));
  }

  void Emit(Token::Type type, std::string text, Value number = {}) {
    tokens_.push_back({type, std::move(text), std::move(number), line_});
  }

  std::string_view Rest() const { return std::string_view(source_).substr(at_); }
  bool Looking(std::string_view text) const { return Rest().starts_with(text); }

  void Advance(size_t bytes) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                    source_.begin() + static_cast<ptrdiff_t>(at_ + bytes), '\n'));
    at_ += bytes;
  }

  void SkipSpace() {
    while (at_ < source_.size() && IsSpace(CodePointAt(source_, at_))) {
      Advance(CodePointLength(source_, at_));
    }
  }

  // The next "{{", "{%" or "{#".
  size_t FindTag() const {
    for (size_t i = at_; i + 1 < source_.size(); ++i) {
      if (source_[i] == '{' &&
          (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) {
        return i;
      }
    }
    return std::string::npos;
  }

  // Data before a tag, after the tag's own stripping. `data` may be empty.
  std::string_view StripBeforeTag(std::string_view data, char sign, Tag tag) const {
    if (sign == '-') return StripRight(data);
    if (sign == '+' || tag == Tag::kVariable) return data;
    const size_t newline = data.rfind('\n');
    const size_t line_start = newline == data.npos ? 0 : newline + 1;
    if (line_start == 0 && !line_starting_) return data;
    // jinja2 wants at least one space here, which makes no difference.
    return IsAllSpace(data.substr(line_start)) ? data.substr(0, line_start) : data;
  }

  Status ReadDataAndTag() {
    const size_t begin = FindTag();
    if (begin == std::string::npos) {
      Emit(Token::Type::kData, std::string(Rest()));
      Advance(source_.size() - at_);
      return {};
    }
    const Tag tag = source_[begin + 1] == '{'   ? Tag::kVariable
                    : source_[begin + 1] == '%' ? Tag::kBlock
                                                : Tag::kComment;
    size_t after = begin + 2;
    char sign = 0;
    if (after < source_.size() && (source_[after] == '-' || source_[after] == '+')) {
      sign = source_[after++];
    }
    const std::string_view data =
        StripBeforeTag(std::string_view(source_).substr(at_, begin - at_), sign, tag);
    if (!data.empty()) Emit(Token::Type::kData, std::string(data));
    Advance(after - at_);
    switch (tag) {
      case Tag::kComment:
        return SkipComment();
      case Tag::kVariable:
        Emit(Token::Type::kVariableBegin, "{{");
        return ReadExpression(Tag::kVariable);
      case Tag::kBlock:
        if (TakeRawBegin()) return ReadRaw();
        Emit(Token::Type::kBlockBegin, "{%");
        return ReadExpression(Tag::kBlock);
    }
    return {};
  }

  // Consumes the end of a tag whose last two characters are `close`, with its sign and what that
  // strips, if it stands here.
  bool TakeTagEnd(std::string_view close, bool trim_newline, bool plus_allowed = true) {
    size_t length = 0;
    char sign = 0;
    if (Looking(close)) {
      length = close.size();
    } else if (at_ < source_.size() &&
               (source_[at_] == '-' || (plus_allowed && source_[at_] == '+')) &&
               Rest().substr(1).starts_with(close)) {
      sign = source_[at_];
      length = close.size() + 1;
    } else {
      return false;
    }
    Advance(length);
    line_starting_ = false;
    const size_t after_tag = at_;
    if (sign == '-') {
      SkipSpace();
    } else if (sign == 0 && trim_newline && Looking("\n")) {
      Advance(1);
    }
    line_starting_ = at_ > after_tag && source_[at_ - 1] == '\n';
    return true;
  }

  Status SkipComment() {
    const int start_line = line_;
    while (at_ < source_.size()) {
      if (TakeTagEnd("#}", true)) return {};
      Advance(1);
    }
    return Error(start_line, "missing end of comment tag");
  }

  // "{%" was consumed; takes "raw %}" if that follows. No newline is trimmed after it.
  bool TakeRawBegin() {
    const size_t saved_at = at_;
    const int saved_line = line_;
    SkipSpace();
    if (Looking("raw")) {
      Advance(3);
      SkipSpace();
      if (TakeTagEnd("%}", false, false)) return true;
    }
    at_ = saved_at;
    line_ = saved_line;
    return false;
  }

  Status ReadRaw() {
    const int start_line = line_;
    const size_t begin = at_;
    for (size_t i = begin; i + 1 < source_.size(); ++i) {
      if (source_[i] != '{' || source_[i + 1] != '%') continue;
      const size_t saved_at = at_;
      const int saved_line = line_;
      Advance(i + 2 - at_);
      char sign = 0;
      if (Looking("-") || Looking("+")) {
        sign = source_[at_];
        Advance(1);
      }
      SkipSpace();
      if (Looking("endraw")) {
        Advance(6);
        SkipSpace();
        const bool starting = line_starting_;
        const int end_line = line_;
        const size_t end_at = at_;
        if (TakeTagEnd("%}", true)) {
          const bool starting_after = line_starting_;
          line_starting_ = starting;
          const auto data =
              StripBeforeTag(std::string_view(source_).substr(begin, i - begin), sign, Tag::kBlock);
          line_starting_ = starting_after;
          if (!data.empty()) {
            tokens_.push_back({Token::Type::kData, std::string(data), {}, start_line});
          }
          return {};
        }
        at_ = end_at;
        line_ = end_line;
      }
      at_ = saved_at;
      line_ = saved_line;
    }
    return Error(start_line, "missing end of raw block");
  }

  Status ReadExpression(Tag tag) {
    const int start_line = line_;
    std::string open;  // brackets still open, as their closing characters
    while (at_ < source_.size()) {
      if (open.empty()) {
        if (tag == Tag::kBlock && Looking(BlockEndHere())) {
          const int line = line_;
          TakeTagEnd("%}", true);
          tokens_.push_back({Token::Type::kBlockEnd, "%}", {}, line});
          return {};
        }
        if (tag == Tag::kVariable && (Looking("}}") || Looking("-}}"))) {
          const int line = line_;
          TakeTagEnd("}}", false, false);
          tokens_.push_back({Token::Type::kVariableEnd, "}}", {}, line});
          return {};
        }
      }
      if (IsSpace(CodePointAt(source_, at_))) {
        SkipSpace();
        continue;
      }
      NIBBLE_TRY(ReadWord(open));
    }
    return Error(start_line, "unexpected end of the template inside a tag");
  }

  std::string_view BlockEndHere() const {
    if (Looking("-%}")) return "-%}";
    if (Looking("+%}")) return "+%}";
    return "%}";
  }

  Status ReadWord(std::string& open) {
    const char c = source_[at_];
    if (c == '\'' || c == '"') return ReadString(c);
    if (IsDigitChar(c)) return ReadNumber();
    const char32_t code_point = CodePointAt(source_, at_);
    if (IsIdentifierPart(code_point)) return ReadName();
    return ReadOperator(open);
  }

  Status ReadName() {
    const size_t begin = at_;
    size_t end = at_;
    while (end < source_.size() && IsIdentifierPart(CodePointAt(source_, end))) {
      end += CodePointLength(source_, end);
    }
    if (!IsIdentifierStart(CodePointAt(source_, begin))) {
      return Error(line_, "invalid character in identifier '{}'",
                   source_.substr(begin, end - begin));
    }
    Emit(Token::Type::kName, source_.substr(begin, end - begin));
    at_ = end;
    return {};
  }

  Status ReadOperator(std::string& open) {
    static constexpr std::string_view kOperators[] = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view op : kOperators) {
      if (!Looking(op)) continue;
      if (op == "(" || op == "[" || op == "{") {
        open += op == "(" ? ')' : op == "[" ? ']' : '}';
      } else if (op == ")" || op == "]" || op == "}") {
        if (open.empty()) return Error(line_, "unexpected '{}'", op);
        if (open.back() != op[0]) {
          return Error(line_, "unexpected '{}', expected '{}'", op, open.back());
        }
        open.pop_back();
      }
      Emit(Token::Type::kOperator, std::string(op));
      Advance(op.size());
      return {};
    }
    return Error(line_, "unexpected character '{}'",
                 source_.substr(at_, CodePointLength(source_, at_)));
  }

  // Digits with single underscores between them, from `at`; returns where they end (at if none).
  size_t DigitsEnd(size_t at) const {
    size_t end = at;
    while (end < source_.size()) {
      if (IsDigitChar(source_[end])) {
        ++end;
      } else if (source_[end] == '_' && end > at && end + 1 < source_.size() &&
                 IsDigitChar(source_[end + 1])) {
        ++end;
      } else {
        break;
      }
    }
    return end;
  }

  // Where the float that starts here ends, or at_ if there is none.
  size_t FloatEnd() const {
    if (at_ > 0 && source_[at_ - 1] == '.') return at_;  // "x.0.1" indexes twice
    const size_t whole = DigitsEnd(at_);
    size_t end = whole;
    if (end < source_.size() && source_[end] == '.') {
      const size_t fraction = DigitsEnd(end + 1);
      if (fraction > end + 1) end = fraction;
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      size_t digits = end + 1;
      if (digits < source_.size() && (source_[digits] == '+' || source_[digits] == '-')) ++digits;
      const size_t exponent = DigitsEnd(digits);
      if (exponent > digits) end = exponent;
    }
    return end == whole ? at_ : end;
  }

  size_t IntegerEnd() const {
    const auto prefixed = [&](std::string_view letters, auto is_digit) -> size_t {
      if (source_[at_] != '0' || at_ + 1 >= source_.size() ||
          letters.find(source_[at_ + 1]) == letters.npos) {
        return at_;
      }
      size_t end = at_ + 2;
      while (end < source_.size()) {
        const bool underscore = source_[end] == '_';
        const size_t digit = end + (underscore ? 1 : 0);
        if (digit >= source_.size() || !is_digit(source_[digit])) break;
        end = digit + 1;
      }
      return end == at_ + 2 ? at_ : end;
    };
    const auto up_to = [](char last) { return [last](char c) { return c >= '0' && c <= last; }; };
    const auto hex = [](char c) {
      return IsDigitChar(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    };
    for (const size_t end :
         {prefixed("bB", up_to('1')), prefixed("oO", up_to('7')), prefixed("xX", hex)}) {
      if (end > at_) return end;
    }
    if (source_[at_] != '0') return DigitsEnd(at_);
    size_t end = at_ + 1;  // zero may be written "0", "00", "0_0"
    while (end < source_.size() &&
           (source_[end] == '0' ||
            (source_[end] == '_' && end + 1 < source_.size() && source_[end + 1] == '0'))) {
      ++end;
    }
    return end;
  }

  Status ReadNumber() {
    if (const size_t end = FloatEnd(); end > at_) {
      std::string digits = source_.substr(at_, end - at_);
      std::erase(digits, '_');
      const std::optional<double> value = ParseFloat(digits);
      if (!value) return Error(line_, "'{}' is not a number", digits);
      Emit(Token::Type::kFloat, digits, Value(*value));
      at_ = end;
      return {};
    }
    const size_t end = IntegerEnd();
    std::string digits = source_.substr(at_, end - at_);
    std::erase(digits, '_');
    const std::optional<Integer> value = ParseInteger(digits, 0);
    if (!value) return Error(line_, "integer {} does not fit in 128 bits", digits);
    Emit(Token::Type::kInteger, digits, Value(*value));
    at_ = end;
    return {};
  }

  Status ReadString(char quote) {
    const int start_line = line_;
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) return Error(start_line, "a string is not closed");
    NIBBLE_ASSIGN(std::string text,
                  Unescape(std::string_view(source_).substr(at_ + 1, end - at_ - 1)));
    Emit(Token::Type::kString, std::move(text));
    Advance(end + 1 - at_);
    return {};
  }

  // Python's unicode-escape. Unknown escapes keep their backslash.
  Result<std::string> Unescape(std::string_view raw) const {
    std::string out;
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] != '\\' || i + 1 >= raw.size()) {
        out += raw[i];
        continue;
      }
      const char c = raw[++i];
      static constexpr std::pair<char, char> kSimple[] = {
          {'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'\\', '\\'}, {'\'', '\''},
          {'"', '"'},  {'a', '\a'}, {'b', '\b'}, {'f', '\f'},  {'v', '\v'}};
      const auto* simple = std::find_if(std::begin(kSimple), std::end(kSimple),
                                        [c](const auto& pair) { return pair.first == c; });
      if (simple != std::end(kSimple)) {
        out += simple->second;
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        const std::string_view hex = raw.substr(i + 1, digits);
        const std::optional<Integer> value =
            hex.find_first_not_of("0123456789abcdefABCDEF") == hex.npos ? ParseInteger(hex, 16)
                                                                        : std::nullopt;
        if (hex.size() != digits || !value || *value > 0x10FFFF ||
            (*value >= 0xD800 && *value < 0xE000)) {
          return Error(line_, "'\\{}{}' is not a valid escape of {} hexadecimal digits", c, hex,
                       digits);
        }
        out += EncodeUtf8(static_cast<char32_t>(*value));
        i += digits;
      } else if (c >= '0' && c <= '7') {
        char32_t value = 0;
        size_t digits = 0;
        for (; digits < 3 && i + digits < raw.size() && raw[i + digits] >= '0' &&
               raw[i + digits] <= '7';
             ++digits) {
          value = value * 8 + static_cast<char32_t>(raw[i + digits] - '0');
        }
        out += EncodeUtf8(value);
        i += digits - 1;
      } else if (c == 'N') {
        return Error(line_, "escapes by name (\\N) are not supported: write \\uXXXX");
      } else if (c != '\n') {  // an escaped newline joins the lines
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the last tag ended with a newline
  std::vector<Token> tokens_;
};

}  // namespace

Result<std::vector<Token>> Tokenize(std::string_view source) {
  if (!IsValidUtf8(source)) {
    return Fail(Code::kInvalidArgument, "line 1: the template is not valid UTF-8");
  }
  return Lexer(NormalizeNewlines(source)).Run();
}

std::string Describe(const Token& token) {
  switch (token.type) {
    case Token::Type::kEnd:
      return "end of the template";
    case Token::Type::kData:
      return "template text";
    case Token::Type::kString:
      return "a string";
    default:
      return fmt::format("'{}'", token.text);
  }
}

}  // namespace nibble::text::jinja
