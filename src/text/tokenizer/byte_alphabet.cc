#include "text/tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "text/unicode/utf8.h"

namespace nibble::text {

namespace {

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr int kFirstShifted = 0x100;
constexpr int kAlphabetEnd = kFirstShifted + 68;

constexpr std::array<uint16_t, 256> kAlphabet = [] {
  std::array<uint16_t, 256> alphabet{};
  int shifted = kFirstShifted;
  for (int byte = 0; byte < 256; ++byte) {
    alphabet[static_cast<size_t>(byte)] =
        static_cast<uint16_t>(StandsForItself(byte) ? byte : shifted++);
  }
  return alphabet;
}();

constexpr std::array<int16_t, kAlphabetEnd> kBytes = [] {
  std::array<int16_t, kAlphabetEnd> bytes{};
  bytes.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    bytes[kAlphabet[static_cast<size_t>(byte)]] = static_cast<int16_t>(byte);
  }
  return bytes;
}();

}  // namespace

char32_t ByteToAlphabet(unsigned char byte) { return kAlphabet[byte]; }

std::optional<unsigned char> AlphabetToByte(char32_t c) {
  if (c >= kBytes.size() || kBytes[c] < 0) return std::nullopt;
  return static_cast<unsigned char>(kBytes[c]);
}

std::optional<std::string> AlphabetToBytes(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  const char* const end = text.data() + text.size();
  for (const char* p = text.data(); p < end;) {
    const std::optional<unsigned char> byte = AlphabetToByte(NextCodePoint(p));
    if (!byte) return std::nullopt;
    bytes.push_back(static_cast<char>(*byte));
  }
  return bytes;
}

std::string BytesToAlphabet(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const char c : bytes) AppendUtf8(ByteToAlphabet(static_cast<unsigned char>(c)), &text);
  return text;
}

}  // namespace nibble::text
