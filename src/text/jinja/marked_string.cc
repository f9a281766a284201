#include "text/jinja/marked_string.h"

#include <string.h>

#include <algorithm>
#include <utility>

namespace nibble::text::jinja {
namespace {

bool IsAscii(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; });
}

void AddRange(std::vector<TextRange>& ranges, size_t begin, size_t end) {
  if (begin == end) return;
  if (!ranges.empty() && ranges.back().end == begin) {
    ranges.back().end = end;
  } else {
    ranges.push_back({begin, end});
  }
}

// The first range that ends after `at`.
std::vector<TextRange>::const_iterator FirstAfter(const std::vector<TextRange>& ranges, size_t at) {
  return std::upper_bound(ranges.begin(), ranges.end(), at,
                          [](size_t value, const TextRange& range) { return value < range.end; });
}

constexpr char32_t kInvalidByte = 0x110000;

bool IsContinuation(std::string_view text, size_t at) {
  return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
}

}  // namespace

StringPtr TrustedString(std::string_view bytes) {
  auto text = std::make_shared<MarkedString>();
  text->bytes = bytes;
  text->ascii = IsAscii(bytes);
  return text;
}

StringPtr UntrustedString(std::string_view bytes) {
  auto text = std::make_shared<MarkedString>();
  text->bytes = bytes;
  text->ascii = IsAscii(bytes);
  AddRange(text->untrusted, 0, bytes.size());
  return text;
}

bool StringBuilder::Fits(size_t more) {
  overflowed_ = overflowed_ || more > kMaxStringBytes - out_.bytes.size();
  return !overflowed_;
}

void StringBuilder::Append(std::string_view bytes, bool untrusted) {
  if (!Fits(bytes.size())) return;
  const size_t begin = out_.bytes.size();
  out_.bytes += bytes;
  if (untrusted) AddRange(out_.untrusted, begin, out_.bytes.size());
}

void StringBuilder::AppendSlice(const MarkedString& text, size_t begin, size_t end) {
  if (begin >= end || !Fits(end - begin)) return;
  const size_t base = out_.bytes.size();
  out_.bytes.append(text.bytes, begin, end - begin);
  for (auto range = FirstAfter(text.untrusted, begin);
       range != text.untrusted.end() && range->begin < end; ++range) {
    AddRange(out_.untrusted, base + std::max(range->begin, begin) - begin,
             base + std::min(range->end, end) - begin);
  }
}

void StringBuilder::AppendDerived(std::string_view bytes, const MarkedString& text, size_t begin,
                                  size_t end) {
  Append(bytes, AnyUntrusted(text, begin, end));
}

StringPtr StringBuilder::Finish(bool markup) {
  out_.ascii = IsAscii(out_.bytes);
  out_.markup = markup;
  return std::make_shared<const MarkedString>(std::exchange(out_, {}));
}

StringPtr Slice(const MarkedString& text, size_t begin, size_t end) {
  StringBuilder builder;
  builder.AppendSlice(text, begin, std::max(begin, end));
  return builder.Finish(text.markup);
}

bool AnyUntrusted(const MarkedString& text, size_t begin, size_t end) {
  const auto range = FirstAfter(text.untrusted, begin);
  return range != text.untrusted.end() && range->begin < end;
}

size_t CodePointLength(std::string_view text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  size_t length = 1;
  if (lead >= 0xF0 && lead < 0xF8) {
    length = 4;
  } else if (lead >= 0xE0) {
    length = 3;
  } else if (lead >= 0xC0) {
    length = 2;
  }
  if (lead >= 0xF8) length = 1;
  for (size_t i = 1; i < length; ++i) {
    if (!IsContinuation(text, at + i)) return 1;
  }
  return length;
}

char32_t CodePointAt(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  switch (CodePointLength(text, at)) {
    case 2:
      return (byte(0) & 0x1Fu) << 6 | (byte(1) & 0x3Fu);
    case 3:
      return (byte(0) & 0x0Fu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
    case 4:
      return (byte(0) & 0x07u) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 |
             (byte(3) & 0x3Fu);
    default:
      return byte(0) < 0x80 ? byte(0) : kInvalidByte + byte(0);
  }
}

size_t PreviousCodePoint(std::string_view text, size_t at) {
  for (size_t back = 2; back <= 4 && back <= at; ++back) {
    if (CodePointLength(text, at - back) == back) return at - back;
  }
  return at - 1;
}

size_t CountCodePoints(const MarkedString& text) {
  if (text.ascii) return text.size();
  size_t count = 0;
  for (size_t at = 0; at < text.size(); at += CodePointLength(text.bytes, at)) ++count;
  return count;
}

size_t ByteOffset(const MarkedString& text, size_t index) {
  if (text.ascii) return std::min(index, text.size());
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index) at += CodePointLength(text.bytes, at);
  return at;
}

size_t FindBytes(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  const void* found = memmem(text.data() + from, text.size() - from, wanted.data(), wanted.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

std::string EncodeUtf8(char32_t code_point) {
  std::string out;
  const auto put = [&](char32_t value) { out += static_cast<char>(value); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
  return out;
}

bool IsValidUtf8(std::string_view text) {
  constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  for (size_t at = 0; at < text.size();) {
    const size_t length = CodePointLength(text, at);
    const char32_t value = CodePointAt(text, at);
    if (value > 0x10FFFF || value < kSmallest[length] || (value >= 0xD800 && value < 0xE000)) {
      return false;
    }
    at += length;
  }
  return true;
}

}  // namespace nibble::text::jinja
