#include "text/tool_parsers/json_scanner.h"

namespace nibble::text {
namespace {

constexpr size_t kMaxDepth = 256;

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsHexDigit(char c) { return IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

}  // namespace

JsonScanner::Step JsonScanner::BeginValue(char c) {
  switch (c) {
    case '{':
    case '[':
      if (open_.size() >= kMaxDepth) return Step::kInvalid;
      open_ += c;
      return GoOn(c == '{' ? State::kFirstKey : State::kFirstItem);
    case '"':
      is_key_ = false;
      return GoOn(State::kString);
    case 't':
      literal_ = "rue";
      return GoOn(State::kLiteral);
    case 'f':
      literal_ = "alse";
      return GoOn(State::kLiteral);
    case 'n':
      literal_ = "ull";
      return GoOn(State::kLiteral);
    case '-':
      return GoOn(State::kMinus);
    case '0':
      return GoOn(State::kZero);
    default:
      return IsDigit(c) ? GoOn(State::kInteger) : Step::kInvalid;
  }
}

JsonScanner::Step JsonScanner::EndValue() {
  state_ = State::kAfterValue;
  return open_.empty() ? Step::kDone : Step::kMore;
}

JsonScanner::Step JsonScanner::Close(char opening) {
  if (open_.empty() || open_.back() != opening) return Step::kInvalid;
  open_.pop_back();
  return EndValue();
}

// A number ends at the first character that cannot be part of it.
JsonScanner::Step JsonScanner::EndNumber(char c) {
  if (EndValue() == Step::kDone) return Step::kDoneBefore;
  return Push(c);
}

JsonScanner::Step JsonScanner::Push(char c) {
  switch (state_) {
    case State::kValue:
      return IsSpace(c) ? Step::kMore : BeginValue(c);
    case State::kFirstItem:
      if (IsSpace(c)) return Step::kMore;
      return c == ']' ? Close('[') : BeginValue(c);
    case State::kFirstKey:
    case State::kKey:
      if (IsSpace(c)) return Step::kMore;
      if (c == '}' && state_ == State::kFirstKey) return Close('{');
      if (c != '"') return Step::kInvalid;
      is_key_ = true;
      return GoOn(State::kString);
    case State::kColon:
      if (IsSpace(c)) return Step::kMore;
      return c == ':' ? GoOn(State::kValue) : Step::kInvalid;
    case State::kAfterValue:
      if (IsSpace(c)) return Step::kMore;
      if (open_.empty()) return Step::kInvalid;
      if (c == ',') return GoOn(open_.back() == '{' ? State::kKey : State::kValue);
      if (c == '}') return Close('{');
      return c == ']' ? Close('[') : Step::kInvalid;
    case State::kString:
      if (static_cast<unsigned char>(c) < 0x20) return Step::kInvalid;
      if (c == '\\') return GoOn(State::kEscape);
      if (c != '"') return Step::kMore;
      return is_key_ ? GoOn(State::kColon) : EndValue();
    case State::kEscape:
      if (c == 'u') {
        hex_digits_ = 0;
        return GoOn(State::kUnicode);
      }
      return std::string_view("\"\\/bfnrt").find(c) != std::string_view::npos ? GoOn(State::kString)
                                                                              : Step::kInvalid;
    case State::kUnicode:
      if (!IsHexDigit(c)) return Step::kInvalid;
      return ++hex_digits_ == 4 ? GoOn(State::kString) : Step::kMore;
    case State::kLiteral:
      if (c != *literal_) return Step::kInvalid;
      return *++literal_ == '\0' ? EndValue() : Step::kMore;
    case State::kMinus:
      if (c == '0') return GoOn(State::kZero);
      return IsDigit(c) ? GoOn(State::kInteger) : Step::kInvalid;
    case State::kZero:
    case State::kInteger:
      if (IsDigit(c)) return state_ == State::kInteger ? Step::kMore : Step::kInvalid;
      if (c == '.') return GoOn(State::kPoint);
      if (c == 'e' || c == 'E') return GoOn(State::kExponent);
      return EndNumber(c);
    case State::kPoint:
      return IsDigit(c) ? GoOn(State::kFraction) : Step::kInvalid;
    case State::kFraction:
      if (IsDigit(c)) return Step::kMore;
      if (c == 'e' || c == 'E') return GoOn(State::kExponent);
      return EndNumber(c);
    case State::kExponent:
      if (c == '+' || c == '-') return GoOn(State::kExponentSign);
      return IsDigit(c) ? GoOn(State::kExponentDigits) : Step::kInvalid;
    case State::kExponentSign:
      return IsDigit(c) ? GoOn(State::kExponentDigits) : Step::kInvalid;
    case State::kExponentDigits:
      return IsDigit(c) ? Step::kMore : EndNumber(c);
  }
  return Step::kInvalid;
}

}  // namespace nibble::text
