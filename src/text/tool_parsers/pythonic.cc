// Calls written as Python: [get_weather(city="Oslo", days=3), now()]. They are parsed, never
// evaluated: values are literals.
#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <string>
#include <utility>

#include "text/tool_parsers/bodies.h"
#include "text/tool_parsers/tags.h"
#include "text/unicode/utf8.h"

namespace nibble::text {
namespace {

constexpr int kMaxDepth = 64;

bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNamePart(char c) { return IsNameStart(c) || IsDigit(c) || c == '.' || c == '-'; }

// Recursive descent over a complete text; each method takes what it reads and writes JSON, or
// returns false.
class LiteralParser {
 public:
  explicit LiteralParser(std::string_view text) : text_(text) {}

  bool Value(int depth, std::string* json) {
    SkipSpace();
    if (AtEnd() || depth > kMaxDepth) return false;
    const char c = text_[at_];
    if (c == '"' || c == '\'') return String(json);
    if (c == '[') return List(']', depth, json);
    if (c == '(') return List(')', depth, json);
    if (c == '{') return Dict(depth, json);
    if (c == '-' || IsDigit(c)) return Number(json);
    return Constant(json);
  }

  // key=value, ... up to the closing parenthesis.
  bool Arguments(std::string* json) {
    *json = "{";
    for (bool first = true;; first = false) {
      SkipSpace();
      if (Take(')')) break;
      if (!first) {
        if (!Take(',')) return false;
        SkipSpace();
        if (Take(')')) break;
      }
      const std::string_view key = Name();
      SkipSpace();
      if (key.empty() || !Take('=')) return false;
      if (!first) *json += ", ";
      *json += JsonString(key) + ": ";
      if (!Value(0, json)) return false;
    }
    *json += '}';
    return true;
  }

  std::string_view Name() {
    const size_t begin = at_;
    if (!AtEnd() && IsNameStart(text_[at_])) {
      while (!AtEnd() && IsNamePart(text_[at_])) ++at_;
    }
    return text_.substr(begin, at_ - begin);
  }

  bool Take(char c) {
    if (AtEnd() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void SkipSpace() {
    while (!AtEnd() && IsSpace(text_[at_])) ++at_;
  }
  bool AtEnd() const { return at_ == text_.size(); }

 private:
  bool TakeWord(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    const size_t end = at_ + word.size();
    if (end < text_.size() && IsNamePart(text_[end])) return false;
    at_ = end;
    return true;
  }

  bool Constant(std::string* json) {
    constexpr std::pair<std::string_view, std::string_view> kConstants[] = {
        {"True", "true"},   {"true", "true"}, {"False", "false"},
        {"false", "false"}, {"None", "null"}, {"null", "null"}};
    for (const auto& [word, value] : kConstants) {
      if (!TakeWord(word)) continue;
      *json += value;
      return true;
    }
    return false;
  }

  bool Digits() {
    const size_t begin = at_;
    while (!AtEnd() && IsDigit(text_[at_])) ++at_;
    return at_ > begin;
  }

  // The numbers that Python and JSON write alike.
  bool Number(std::string* json) {
    const size_t begin = at_;
    Take('-');
    const size_t digits = at_;
    if (!Digits()) return false;
    if (text_[digits] == '0' && at_ > digits + 1) return false;
    if (Take('.') && !Digits()) return false;
    if (Take('e') || Take('E')) {
      if (!Take('-')) Take('+');
      if (!Digits()) return false;
    }
    if (!AtEnd() && IsNamePart(text_[at_])) return false;
    *json += text_.substr(begin, at_ - begin);
    return true;
  }

  bool List(char close, int depth, std::string* json) {
    ++at_;
    *json += '[';
    for (bool first = true;; first = false) {
      SkipSpace();
      if (Take(close)) break;
      if (!first) {
        if (!Take(',')) return false;
        SkipSpace();
        if (Take(close)) break;
        *json += ", ";
      }
      if (!Value(depth + 1, json)) return false;
    }
    *json += ']';
    return true;
  }

  bool Dict(int depth, std::string* json) {
    ++at_;
    *json += '{';
    for (bool first = true;; first = false) {
      SkipSpace();
      if (Take('}')) break;
      if (!first) {
        if (!Take(',')) return false;
        SkipSpace();
        if (Take('}')) break;
        *json += ", ";
      }
      SkipSpace();
      if (AtEnd() || (text_[at_] != '"' && text_[at_] != '\'') || !String(json)) return false;
      SkipSpace();
      if (!Take(':')) return false;
      *json += ": ";
      if (!Value(depth + 1, json)) return false;
    }
    *json += '}';
    return true;
  }

  bool String(std::string* json) {
    const char quote = text_[at_++];
    std::string value;
    while (!AtEnd() && text_[at_] != quote) {
      const char c = text_[at_++];
      if (c != '\\') {
        value += c;
      } else if (!Escape(&value)) {
        return false;
      }
    }
    if (!Take(quote)) return false;
    *json += JsonString(value);
    return true;
  }

  bool Escape(std::string* value) {
    if (AtEnd()) return false;
    const char c = text_[at_++];
    constexpr std::string_view kNames = "ntrbfav0\\'\"";
    constexpr std::string_view kValues("\n\t\r\b\f\a\v\0\\'\"", 11);
    if (const size_t i = kNames.find(c); i != kNames.npos) {
      *value += kValues[i];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      return CodePoint(c == 'x' ? 2 : c == 'u' ? 4 : 8, value);
    } else if (c != '\n') {  // a backslash in front of anything else stands for itself
      *value += '\\';
      *value += c;
    }
    return true;
  }

  bool CodePoint(size_t digits, std::string* value) {
    const std::string_view hex = text_.substr(at_, digits);
    uint32_t c = 0;
    const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), c, 16);
    if (error != std::errc() || hex.size() != digits || end != hex.data() + digits) return false;
    if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return false;
    AppendUtf8(static_cast<char32_t>(c), value);
    at_ += digits;
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
};

class PythonicBody : public CallBody {
 public:
  void Begin(size_t) override { state_ = State::kBegin; }

  Step Read(CallText& text) override {
    switch (state_) {
      case State::kBegin:
        text.TakeSpace();
        if (text.rest().empty()) return Step::kMore;
        if (text.rest()[0] != '[') return Step::kInvalid;
        text.Take(1);
        BeginCall();
        return Step::kOn;
      case State::kCall:
        return ReadCall(text);
      case State::kAfterCall:
        return ReadAfterCall(text);
    }
    return Step::kInvalid;
  }

 private:
  enum class State { kBegin, kCall, kAfterCall };

  void BeginCall() {
    state_ = State::kCall;
    scanned_ = 0;
    depth_ = 0;
    quote_ = '\0';
    is_escaped_ = false;
  }

  // Looks for the parenthesis that closes the call; what has been looked at is not looked at again.
  Step ReadCall(CallText& text) {
    if (scanned_ == 0) text.TakeSpace();
    const std::string_view rest = text.rest();
    for (; scanned_ < rest.size(); ++scanned_) {
      const char c = rest[scanned_];
      if (quote_ != '\0') {
        if (is_escaped_) {
          is_escaped_ = false;
        } else if (c == '\\') {
          is_escaped_ = true;
        } else if (c == quote_) {
          quote_ = '\0';
        }
      } else if (depth_ == 0 && c != '(') {  // in front of the arguments
        if (!(scanned_ == 0 ? IsNameStart(c) : IsNamePart(c))) return Step::kInvalid;
        if (scanned_ > kMaxHeaderBytes) return Step::kInvalid;
      } else if (c == '"' || c == '\'') {
        quote_ = c;
      } else if (c == '(' || c == '[' || c == '{') {
        ++depth_;
      } else if (c == ')' || c == ']' || c == '}') {
        if (--depth_ == 0) return ReportCall(text, scanned_ + 1);
      }
    }
    return Step::kMore;
  }

  Step ReportCall(CallText& text, size_t size) {
    LiteralParser parser(text.rest().substr(0, size));
    std::string name(parser.Name());
    std::string arguments;
    if (name.empty() || !parser.Take('(') || !parser.Arguments(&arguments) || !parser.AtEnd()) {
      return Step::kInvalid;
    }
    text.Take(size);
    text.Start(std::move(name));
    text.Arguments(arguments);
    text.End();
    state_ = State::kAfterCall;
    return Step::kOn;
  }

  Step ReadAfterCall(CallText& text) {
    text.DropSpace();
    if (text.rest().empty()) return Step::kMore;
    if (text.rest()[0] == ']') {
      text.Drop(1);
      return Step::kDone;
    }
    // White space may follow a comma; the list may end with one.
    const size_t next = text.rest()[0] == ',' ? text.rest().find_first_not_of(" \t\r\n", 1) : 0;
    if (next == std::string_view::npos) return Step::kMore;
    if (next == 0) return Step::kInvalid;
    text.Drop(next);
    if (text.rest()[0] != ']') BeginCall();
    return Step::kOn;
  }

  State state_ = State::kBegin;
  size_t scanned_ = 0;  // of the call
  int depth_ = 0;
  char quote_ = '\0';
  bool is_escaped_ = false;
};

}  // namespace

std::unique_ptr<CallBody> MakePythonicBody() { return std::make_unique<PythonicBody>(); }

std::optional<std::string> PythonLiteralToJson(std::string_view text) {
  LiteralParser parser(text);
  std::string json;
  if (!parser.Value(0, &json)) return std::nullopt;
  parser.SkipSpace();
  if (!parser.AtEnd()) return std::nullopt;
  return json;
}

}  // namespace nibble::text
