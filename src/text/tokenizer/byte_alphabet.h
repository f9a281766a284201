// The printable alphabet of byte-level tokenizers: one character per byte.
//
// Bytes that are printable in Latin-1 stand for themselves, the other 68 are, in order, U+0100 and
// up: a space is Ġ, a line end Ċ. The scheme is GPT-2's.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nibble::text {

// The character for a byte.
char32_t ByteToAlphabet(unsigned char byte);
// The byte that a character stands for.
std::optional<unsigned char> AlphabetToByte(char32_t c);

// "Ġthe" → " the"; nothing if a character is outside the alphabet. The text must be valid UTF-8.
std::optional<std::string> AlphabetToBytes(std::string_view text);
// " the" → "Ġthe".
std::string BytesToAlphabet(std::string_view bytes);

}  // namespace nibble::text
