// Character classes and case mapping as Python's str has them.
#pragma once

#include <string>
#include <string_view>

namespace nibble::text::jinja {

bool IsSpace(char32_t c);
bool IsPrintable(char32_t c);
bool IsAlpha(char32_t c);
bool IsDecimal(char32_t c);
bool IsDigit(char32_t c);
bool IsNumeric(char32_t c);
bool IsUpper(char32_t c);
bool IsLower(char32_t c);
bool IsTitle(char32_t c);
// Letters that carry case, and what may stand between them without ending a word (for the final
// sigma).
bool IsCased(char32_t c);
bool IsCaseIgnorable(char32_t c);
bool IsLineBreak(char32_t c);
bool IsIdentifierStart(char32_t c);
bool IsIdentifierPart(char32_t c);

// Full mappings, UTF-8: "ß" → "SS".
std::string UpperOf(char32_t c);
std::string LowerOf(char32_t c);
std::string TitleOf(char32_t c);
std::string FoldOf(char32_t c);

}  // namespace nibble::text::jinja
