// Checks one JSON value as its characters arrive, without building it. Strict (RFC 8259) and
// bounded in depth. Thread-safety: none.
#pragma once

#include <string>
#include <string_view>

namespace nibble::text {

class JsonScanner {
 public:
  enum class Step {
    kMore,        // taken, the value goes on
    kDone,        // taken, the value is complete
    kDoneBefore,  // not taken: the value was complete before it (numbers end so)
    kInvalid,     // not taken: no value can go on like this
  };

  // White space before the value counts as kMore.
  Step Push(char c);

 private:
  enum class State {
    kValue,         // a value must begin
    kFirstItem,     // after '[': a value or ']'
    kFirstKey,      // after '{': a key or '}'
    kKey,           // after ',' in an object
    kColon,         // after a key
    kAfterValue,    // in a container: ',' or its end
    kString,        // inside a string
    kEscape,        // after a backslash
    kUnicode,       // inside \uXXXX
    kLiteral,       // inside true, false, null
    kMinus,         // after '-'
    kZero,          // after a leading zero
    kInteger,       // digits before the point
    kPoint,         // after '.'
    kFraction,      // digits after it
    kExponent,      // after 'e'
    kExponentSign,  // after its sign
    kExponentDigits,
  };

  Step BeginValue(char c);
  Step Close(char opening);
  Step EndValue();  // the value at the current depth is complete with this character
  Step EndNumber(char c);
  Step GoOn(State state) {
    state_ = state;
    return Step::kMore;
  }

  State state_ = State::kValue;
  std::string open_;          // the opening brackets
  bool is_key_ = false;       // the string is a key
  int hex_digits_ = 0;        // of \uXXXX, seen
  const char* literal_ = "";  // what remains of true, false, null
};

}  // namespace nibble::text
