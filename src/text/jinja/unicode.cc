#include "text/jinja/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

#include "text/jinja/marked_string.h"

namespace nibble::text::jinja {
namespace {

// Letters whose upper case is longer than one letter (Unicode's SpecialCasing, unconditional rows),
// with their title case.
struct SpecialCase {
  char32_t letter;
  const char* upper;
  const char* title;
};
constexpr SpecialCase kSpecialCases[] = {{0xDF, "SS", "Ss"},
                                         {0x149, "\u02bcN", "\u02bcN"},
                                         {0x1F0, "J\u030c", "J\u030c"},
                                         {0x390, "\u0399\u0308\u0301", "\u0399\u0308\u0301"},
                                         {0x3B0, "\u03a5\u0308\u0301", "\u03a5\u0308\u0301"},
                                         {0x587, "\u0535\u0552", "\u0535\u0582"},
                                         {0x1E96, "H\u0331", "H\u0331"},
                                         {0x1E97, "T\u0308", "T\u0308"},
                                         {0x1E98, "W\u030a", "W\u030a"},
                                         {0x1E99, "Y\u030a", "Y\u030a"},
                                         {0x1E9A, "A\u02be", "A\u02be"},
                                         {0x1F50, "\u03a5\u0313", "\u03a5\u0313"},
                                         {0x1F52, "\u03a5\u0313\u0300", "\u03a5\u0313\u0300"},
                                         {0x1F54, "\u03a5\u0313\u0301", "\u03a5\u0313\u0301"},
                                         {0x1F56, "\u03a5\u0313\u0342", "\u03a5\u0313\u0342"},
                                         {0x1F80, "\u1f08\u0399", "\u1f88"},
                                         {0x1F81, "\u1f09\u0399", "\u1f89"},
                                         {0x1F82, "\u1f0a\u0399", "\u1f8a"},
                                         {0x1F83, "\u1f0b\u0399", "\u1f8b"},
                                         {0x1F84, "\u1f0c\u0399", "\u1f8c"},
                                         {0x1F85, "\u1f0d\u0399", "\u1f8d"},
                                         {0x1F86, "\u1f0e\u0399", "\u1f8e"},
                                         {0x1F87, "\u1f0f\u0399", "\u1f8f"},
                                         {0x1F88, "\u1f08\u0399", "\u1f88"},
                                         {0x1F89, "\u1f09\u0399", "\u1f89"},
                                         {0x1F8A, "\u1f0a\u0399", "\u1f8a"},
                                         {0x1F8B, "\u1f0b\u0399", "\u1f8b"},
                                         {0x1F8C, "\u1f0c\u0399", "\u1f8c"},
                                         {0x1F8D, "\u1f0d\u0399", "\u1f8d"},
                                         {0x1F8E, "\u1f0e\u0399", "\u1f8e"},
                                         {0x1F8F, "\u1f0f\u0399", "\u1f8f"},
                                         {0x1F90, "\u1f28\u0399", "\u1f98"},
                                         {0x1F91, "\u1f29\u0399", "\u1f99"},
                                         {0x1F92, "\u1f2a\u0399", "\u1f9a"},
                                         {0x1F93, "\u1f2b\u0399", "\u1f9b"},
                                         {0x1F94, "\u1f2c\u0399", "\u1f9c"},
                                         {0x1F95, "\u1f2d\u0399", "\u1f9d"},
                                         {0x1F96, "\u1f2e\u0399", "\u1f9e"},
                                         {0x1F97, "\u1f2f\u0399", "\u1f9f"},
                                         {0x1F98, "\u1f28\u0399", "\u1f98"},
                                         {0x1F99, "\u1f29\u0399", "\u1f99"},
                                         {0x1F9A, "\u1f2a\u0399", "\u1f9a"},
                                         {0x1F9B, "\u1f2b\u0399", "\u1f9b"},
                                         {0x1F9C, "\u1f2c\u0399", "\u1f9c"},
                                         {0x1F9D, "\u1f2d\u0399", "\u1f9d"},
                                         {0x1F9E, "\u1f2e\u0399", "\u1f9e"},
                                         {0x1F9F, "\u1f2f\u0399", "\u1f9f"},
                                         {0x1FA0, "\u1f68\u0399", "\u1fa8"},
                                         {0x1FA1, "\u1f69\u0399", "\u1fa9"},
                                         {0x1FA2, "\u1f6a\u0399", "\u1faa"},
                                         {0x1FA3, "\u1f6b\u0399", "\u1fab"},
                                         {0x1FA4, "\u1f6c\u0399", "\u1fac"},
                                         {0x1FA5, "\u1f6d\u0399", "\u1fad"},
                                         {0x1FA6, "\u1f6e\u0399", "\u1fae"},
                                         {0x1FA7, "\u1f6f\u0399", "\u1faf"},
                                         {0x1FA8, "\u1f68\u0399", "\u1fa8"},
                                         {0x1FA9, "\u1f69\u0399", "\u1fa9"},
                                         {0x1FAA, "\u1f6a\u0399", "\u1faa"},
                                         {0x1FAB, "\u1f6b\u0399", "\u1fab"},
                                         {0x1FAC, "\u1f6c\u0399", "\u1fac"},
                                         {0x1FAD, "\u1f6d\u0399", "\u1fad"},
                                         {0x1FAE, "\u1f6e\u0399", "\u1fae"},
                                         {0x1FAF, "\u1f6f\u0399", "\u1faf"},
                                         {0x1FB2, "\u1fba\u0399", "\u1fba\u0345"},
                                         {0x1FB3, "\u0391\u0399", "\u1fbc"},
                                         {0x1FB4, "\u0386\u0399", "\u0386\u0345"},
                                         {0x1FB6, "\u0391\u0342", "\u0391\u0342"},
                                         {0x1FB7, "\u0391\u0342\u0399", "\u0391\u0342\u0345"},
                                         {0x1FBC, "\u0391\u0399", "\u1fbc"},
                                         {0x1FC2, "\u1fca\u0399", "\u1fca\u0345"},
                                         {0x1FC3, "\u0397\u0399", "\u1fcc"},
                                         {0x1FC4, "\u0389\u0399", "\u0389\u0345"},
                                         {0x1FC6, "\u0397\u0342", "\u0397\u0342"},
                                         {0x1FC7, "\u0397\u0342\u0399", "\u0397\u0342\u0345"},
                                         {0x1FCC, "\u0397\u0399", "\u1fcc"},
                                         {0x1FD2, "\u0399\u0308\u0300", "\u0399\u0308\u0300"},
                                         {0x1FD3, "\u0399\u0308\u0301", "\u0399\u0308\u0301"},
                                         {0x1FD6, "\u0399\u0342", "\u0399\u0342"},
                                         {0x1FD7, "\u0399\u0308\u0342", "\u0399\u0308\u0342"},
                                         {0x1FE2, "\u03a5\u0308\u0300", "\u03a5\u0308\u0300"},
                                         {0x1FE3, "\u03a5\u0308\u0301", "\u03a5\u0308\u0301"},
                                         {0x1FE4, "\u03a1\u0313", "\u03a1\u0313"},
                                         {0x1FE6, "\u03a5\u0342", "\u03a5\u0342"},
                                         {0x1FE7, "\u03a5\u0308\u0342", "\u03a5\u0308\u0342"},
                                         {0x1FF2, "\u1ffa\u0399", "\u1ffa\u0345"},
                                         {0x1FF3, "\u03a9\u0399", "\u1ffc"},
                                         {0x1FF4, "\u038f\u0399", "\u038f\u0345"},
                                         {0x1FF6, "\u03a9\u0342", "\u03a9\u0342"},
                                         {0x1FF7, "\u03a9\u0342\u0399", "\u03a9\u0342\u0345"},
                                         {0x1FFC, "\u03a9\u0399", "\u1ffc"},
                                         {0xFB00, "FF", "Ff"},
                                         {0xFB01, "FI", "Fi"},
                                         {0xFB02, "FL", "Fl"},
                                         {0xFB03, "FFI", "Ffi"},
                                         {0xFB04, "FFL", "Ffl"},
                                         {0xFB05, "ST", "St"},
                                         {0xFB06, "ST", "St"},
                                         {0xFB13, "\u0544\u0546", "\u0544\u0576"},
                                         {0xFB14, "\u0544\u0535", "\u0544\u0565"},
                                         {0xFB15, "\u0544\u053b", "\u0544\u056b"},
                                         {0xFB16, "\u054e\u0546", "\u054e\u0576"},
                                         {0xFB17, "\u0544\u053d", "\u0544\u056d"}};

const SpecialCase* FindSpecial(char32_t c) {
  const auto* at = std::lower_bound(
      std::begin(kSpecialCases), std::end(kSpecialCases), c,
      [](const SpecialCase& special, char32_t value) { return special.letter < value; });
  return at != std::end(kSpecialCases) && at->letter == c ? at : nullptr;
}

utf8proc_category_t CategoryOf(char32_t c) {
  return c > 0x10FFFF ? UTF8PROC_CATEGORY_CN : utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool IsAnyOf(char32_t c, std::u32string_view set) { return set.find(c) != set.npos; }

// Bytes that are no code point map to themselves.
std::string Encoded(char32_t c) {
  return c > 0x10FFFF ? std::string(1, static_cast<char>(c & 0xFF)) : EncodeUtf8(c);
}

}  // namespace

bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool IsLineBreak(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

bool IsPrintable(char32_t c) {
  if (c == ' ') return true;
  switch (CategoryOf(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool IsAlpha(char32_t c) {
  const auto category = CategoryOf(c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsDecimal(char32_t c) { return CategoryOf(c) == UTF8PROC_CATEGORY_ND; }

bool IsDigit(char32_t c) {
  return IsDecimal(c) || IsAnyOf(c, U"\u00b2\u00b3\u00b9\u2070\u24ea") ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) ||
         (c >= 0x2460 && c <= 0x2468);
}

bool IsNumeric(char32_t c) {
  const auto category = CategoryOf(c);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool IsUpper(char32_t c) { return c <= 0x10FFFF && utf8proc_isupper(static_cast<int32_t>(c)) != 0; }

bool IsLower(char32_t c) { return c <= 0x10FFFF && utf8proc_islower(static_cast<int32_t>(c)) != 0; }

bool IsTitle(char32_t c) { return CategoryOf(c) == UTF8PROC_CATEGORY_LT; }

bool IsCased(char32_t c) { return IsUpper(c) || IsLower(c) || IsTitle(c); }

bool IsCaseIgnorable(char32_t c) {
  switch (CategoryOf(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return IsAnyOf(
          c,
          U"'.:"
          U"\u00b7\u0387\u055f\u05f4\u2018\u2019\u2024\u2027\ufe13\ufe52\ufe55\uff07\uff0e\uff1a");
  }
}

bool IsIdentifierStart(char32_t c) {
  return c == '_' || IsAlpha(c) || CategoryOf(c) == UTF8PROC_CATEGORY_NL;
}

bool IsIdentifierPart(char32_t c) {
  if (IsIdentifierStart(c)) return true;
  switch (CategoryOf(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return c == 0xB7;
  }
}

std::string UpperOf(char32_t c) {
  if (c > 0x10FFFF) return Encoded(c);
  if (const SpecialCase* special = FindSpecial(c)) return special->upper;
  return Encoded(static_cast<char32_t>(utf8proc_toupper(static_cast<int32_t>(c))));
}

std::string LowerOf(char32_t c) {
  if (c > 0x10FFFF) return Encoded(c);
  if (c == 0x130) return "i\u0307";
  return Encoded(static_cast<char32_t>(utf8proc_tolower(static_cast<int32_t>(c))));
}

std::string TitleOf(char32_t c) {
  if (c > 0x10FFFF) return Encoded(c);
  const SpecialCase* special = FindSpecial(c);
  if (special != nullptr && special->title != nullptr) return special->title;
  return Encoded(static_cast<char32_t>(utf8proc_totitle(static_cast<int32_t>(c))));
}

std::string FoldOf(char32_t c) {
  if (c > 0x10FFFF) return Encoded(c);
  utf8proc_int32_t folded[8];
  int boundary = 0;
  const auto count =
      utf8proc_decompose_char(static_cast<int32_t>(c), folded, 8, UTF8PROC_CASEFOLD, &boundary);
  std::string out;
  for (utf8proc_ssize_t i = 0; i < count && i < 8; ++i)
    out += Encoded(static_cast<char32_t>(folded[i]));
  return out;
}

}  // namespace nibble::text::jinja
