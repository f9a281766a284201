// Character classes as Hugging Face `tokenizers` sees them, at one table look-up per code point.
//
// The tables are probed from that library (tools/make_unicode_tables.py), because it mixes several
// Unicode versions and token ids depend on each of them. Thread-safety: everything is immutable;
// the look-up tables are unfolded once, on first use.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace nibble::text {

// Unicode general categories, with control characters cut in three so that white space is a union
// of categories as well.
enum class Category : uint8_t {
  kCn,
  kLu,
  kLl,
  kLt,
  kLm,
  kLo,
  kMn,
  kMc,
  kMe,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPs,
  kPe,
  kPi,
  kPf,
  kPo,
  kSm,
  kSc,
  kSk,
  kSo,
  kZs,
  kZl,
  kZp,
  kCc,
  kCf,
  kCo,
  kControlBlank,    // U+0009, U+000B, U+000C, U+0085
  kControlLineEnd,  // U+000A, U+000D
};

// A set of categories, one bit each.
using CategorySet = uint32_t;

template <typename... C>
constexpr CategorySet SetOf(C... categories) {
  return (CategorySet{0} | ... | (CategorySet{1} << static_cast<int>(categories)));
}

inline constexpr CategorySet kLetters =
    SetOf(Category::kLu, Category::kLl, Category::kLt, Category::kLm, Category::kLo);
inline constexpr CategorySet kMarks = SetOf(Category::kMn, Category::kMc, Category::kMe);
inline constexpr CategorySet kNumbers = SetOf(Category::kNd, Category::kNl, Category::kNo);
inline constexpr CategorySet kPunctuation =
    SetOf(Category::kPc, Category::kPd, Category::kPs, Category::kPe, Category::kPi, Category::kPf,
          Category::kPo);
inline constexpr CategorySet kSymbols =
    SetOf(Category::kSm, Category::kSc, Category::kSk, Category::kSo);
inline constexpr CategorySet kSeparators = SetOf(Category::kZs, Category::kZl, Category::kZp);
inline constexpr CategorySet kControls =
    SetOf(Category::kCc, Category::kControlBlank, Category::kControlLineEnd);
inline constexpr CategorySet kOthers =
    kControls | SetOf(Category::kCn, Category::kCf, Category::kCo);
inline constexpr CategorySet kLineEnds = SetOf(Category::kControlLineEnd);
inline constexpr CategorySet kWhiteSpace =
    kSeparators | SetOf(Category::kControlBlank, Category::kControlLineEnd);

// Properties that are no union of categories, because another library with another Unicode version
// decides them.
enum Property : uint8_t {
  kDigitsNumeric = 1 << 0,    // what the Digits pre-tokenizer isolates
  kPunctuationMark = 1 << 1,  // what the Punctuation pre-tokenizer isolates
  kRustWord = 1 << 2,         // \w of the Whitespace pre-tokenizer and of single_word added tokens
  kOnigWord = 1 << 3,         // \w in Split and Replace patterns
  kHan = 1 << 4,              // \p{Han}
  kNfcActive = 1 << 5,   // changed by NFC, or with a combining class, or joined to what precedes
  kNfkcActive = 1 << 6,  // the same for NFKC
  kNewerThanOracle = 1 << 7,  // utf8proc normalizes it, `tokenizers` does not know it
};

namespace internal {

// One byte per code point in two levels: equal blocks of 256 are stored once.
class TwoLevelTable {
 public:
  TwoLevelTable(const uint32_t* runs, size_t count);
  uint8_t operator[](char32_t c) const { return values_[block_of_[c >> 8] * 256u + (c & 0xFF)]; }

 private:
  std::array<uint16_t, 0x1100> block_of_;
  std::vector<uint8_t> values_;
};

const TwoLevelTable& Categories();
const TwoLevelTable& Properties();

}  // namespace internal

// Look-ups for loops: get the table once, ask it per code point (any value below 0x110000).
class CategoryTable {
 public:
  CategoryTable() : table_(internal::Categories()) {}
  Category operator[](char32_t c) const { return static_cast<Category>(table_[c]); }
  bool In(char32_t c, CategorySet set) const { return (set >> table_[c]) & 1; }

 private:
  const internal::TwoLevelTable& table_;
};

class PropertyTable {
 public:
  PropertyTable() : table_(internal::Properties()) {}
  bool Has(char32_t c, uint8_t properties) const { return (table_[c] & properties) != 0; }

 private:
  const internal::TwoLevelTable& table_;
};

inline bool IsWhiteSpace(char32_t c) { return CategoryTable().In(c, kWhiteSpace); }

// Appends the lower-case form of one code point, without regard to its neighbours.
void AppendLowerCase(char32_t c, std::string* out);

// A set of code points as sorted, disjoint, inclusive ranges.
struct CodePointRange {
  char32_t first;
  char32_t last;
  bool operator==(const CodePointRange&) const = default;
};
std::vector<CodePointRange> RangesOf(CategorySet categories);
std::vector<CodePointRange> RangesOf(Property property);

}  // namespace nibble::text
