// Strings of the template engine: UTF-8 bytes that remember which of them came from the caller.
//
// `untrusted` holds the caller's ranges, sorted and disjoint. Every operation of the engine builds
// its result with StringBuilder, which carries the marks over, so that no slice, join or
// replacement can launder them. Offsets are bytes unless a name says code points. Invalid UTF-8
// counts as one code point per byte. Thread-safety: immutable once built.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace nibble::text::jinja {

struct MarkedString {
  std::string bytes;
  std::vector<TextRange> untrusted;
  bool ascii = true;    // no byte above 0x7f: code points are bytes
  bool markup = false;  // Markup of MarkupSafe: escapes what is joined to it

  std::string_view view() const { return bytes; }
  size_t size() const { return bytes.size(); }
};

using StringPtr = std::shared_ptr<const MarkedString>;

StringPtr TrustedString(std::string_view bytes);
StringPtr UntrustedString(std::string_view bytes);

constexpr size_t kMaxStringBytes = 32 << 20;

// What would grow past kMaxStringBytes is dropped and remembered in overflowed().
class StringBuilder {
 public:
  void Append(std::string_view bytes, bool untrusted = false);
  void Append(const MarkedString& text) { AppendSlice(text, 0, text.size()); }
  void AppendSlice(const MarkedString& text, size_t begin, size_t end);
  // Bytes that replace [begin, end) of text (an escape, a case mapping): untrusted where any of it
  // was.
  void AppendDerived(std::string_view bytes, const MarkedString& text, size_t begin, size_t end);
  size_t size() const { return out_.bytes.size(); }
  bool overflowed() const { return overflowed_; }
  StringPtr Finish(bool markup = false);

 private:
  bool Fits(size_t more);

  MarkedString out_;
  bool overflowed_ = false;
};

StringPtr Slice(const MarkedString& text, size_t begin, size_t end);
bool AnyUntrusted(const MarkedString& text, size_t begin, size_t end);

// Length of the code point that starts at `at` (1 for invalid bytes), and its value (the byte + a
// value above U+10FFFF for invalid ones, so that they compare unequal to everything else).
size_t CodePointLength(std::string_view text, size_t at);
char32_t CodePointAt(std::string_view text, size_t at);
// Start of the code point that ends before `at` > 0.
size_t PreviousCodePoint(std::string_view text, size_t at);
size_t CountCodePoints(const MarkedString& text);
// Byte offset of code point `index`, the text's size if there are fewer.
size_t ByteOffset(const MarkedString& text, size_t index);
// text.find(wanted, from) in linear time, whatever the two are (std::string's is quadratic).
size_t FindBytes(std::string_view text, std::string_view wanted, size_t from = 0);
std::string EncodeUtf8(char32_t code_point);
bool IsValidUtf8(std::string_view text);

}  // namespace nibble::text::jinja
