// UTF-8: validation, decoding of text known to be valid, and the lossy reading of broken bytes.
//
// "Valid" is Unicode's strict sense: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble::text {

// Offset of the first byte that is not part of valid UTF-8; text.size() if there is none.
size_t FindInvalidUtf8(std::string_view text);

// Length in bytes of the code point that starts with this byte (valid UTF-8 assumed).
inline size_t Utf8Length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// The code point at p, which must point into valid UTF-8; advances p past it.
inline char32_t NextCodePoint(const char*& p) {
  const auto* u = reinterpret_cast<const unsigned char*>(p);
  if (u[0] < 0x80) {
    p += 1;
    return u[0];
  }
  if (u[0] < 0xE0) {
    p += 2;
    return (u[0] & 0x1Fu) << 6 | (u[1] & 0x3Fu);
  }
  if (u[0] < 0xF0) {
    p += 3;
    return (u[0] & 0x0Fu) << 12 | (u[1] & 0x3Fu) << 6 | (u[2] & 0x3Fu);
  }
  p += 4;
  return (u[0] & 0x07u) << 18 | (u[1] & 0x3Fu) << 12 | (u[2] & 0x3Fu) << 6 | (u[3] & 0x3Fu);
}

// The start of the code point that ends before p (begin < p, valid UTF-8).
inline const char* PreviousCodePoint(const char* begin, const char* p) {
  do --p;
  while (p > begin && (static_cast<unsigned char>(*p) & 0xC0) == 0x80);
  return p;
}

void AppendUtf8(char32_t c, std::string* out);

// Appends `bytes` as valid UTF-8: each maximal subpart of a broken sequence becomes one U+FFFD, as
// in Rust's from_utf8_lossy and Python's errors="replace". With `final` false an unfinished
// sequence at the end is not consumed. Returns the number of bytes consumed.
size_t AppendLossyUtf8(std::string_view bytes, bool final, std::string* out);

}  // namespace nibble::text
