#include "text/tokenizer/split_patterns.h"

#include "text/unicode/unicode.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace {

enum class Contractions { kNone, kExactCase, kAnyCase, kAnyCaseSuffix };

// What distinguishes the families. All of them try, in this order: contraction, word, number,
// other characters, blanks up to a line end, blanks before a word, blanks.
struct Style {
  Contractions contractions = Contractions::kNone;
  // Word: an optional lead character outside `not_lead`, then letters. GPT-2 allows a space only.
  bool lead_is_space_only = false;
  CategorySet not_lead = 0;
  CategorySet letters = 0;
  // o200k: a word is upper* lower+, or failing that upper+ lower*.
  bool cased_words = false;
  bool han_apart = false;  // Kimi: first a run of Han, which cased words then leave out
  // Numbers: at most this many digits; 0 means an optional space and any number of them.
  int max_digits = 0;
  bool has_numbers = true;
  // Other: an optional space, a run outside (or, DeepSeek, inside) this set, then line ends.
  CategorySet other = 0;
  bool line_ends_after_other = true;
  bool slash_after_other = false;
  bool blanks_to_line_end = true;
  bool ascii_punctuation_word = false;  // DeepSeek: one ASCII mark and ASCII letters
};

constexpr CategorySet kAll = ~CategorySet{0};
constexpr CategorySet kUpper =
    SetOf(Category::kLu, Category::kLt, Category::kLm, Category::kLo) | kMarks;
constexpr CategorySet kLower = SetOf(Category::kLl, Category::kLm, Category::kLo) | kMarks;
constexpr char32_t kFirstHan = 0x2E80;
constexpr CategorySet kNotLead = kLineEnds | kLetters | kNumbers;

constexpr Style kGpt2 = {.contractions = Contractions::kExactCase,
                         .lead_is_space_only = true,
                         .letters = kLetters,
                         .other = kAll & ~(kWhiteSpace | kLetters | kNumbers),
                         .line_ends_after_other = false,
                         .blanks_to_line_end = false};

constexpr Style kLlama3 = {.contractions = Contractions::kAnyCase,
                           .not_lead = kNotLead,
                           .letters = kLetters,
                           .max_digits = 3,
                           .other = kAll & ~(kWhiteSpace | kLetters | kNumbers)};

constexpr Style kQwen2 = {.contractions = Contractions::kAnyCase,
                          .not_lead = kNotLead,
                          .letters = kLetters,
                          .max_digits = 1,
                          .other = kAll & ~(kWhiteSpace | kLetters | kNumbers)};

constexpr Style kQwen35 = {.contractions = Contractions::kAnyCase,
                           .not_lead = kNotLead,
                           .letters = kLetters | kMarks,
                           .max_digits = 1,
                           .other = kAll & ~(kWhiteSpace | kLetters | kMarks | kNumbers)};

constexpr Style kO200k = {.contractions = Contractions::kAnyCaseSuffix,
                          .not_lead = kNotLead,
                          .cased_words = true,
                          .max_digits = 3,
                          .other = kAll & ~(kWhiteSpace | kLetters | kNumbers),
                          .slash_after_other = true};

constexpr Style kKimi = {.contractions = Contractions::kAnyCaseSuffix,
                         .not_lead = kNotLead,
                         .cased_words = true,
                         .han_apart = true,
                         .max_digits = 3,
                         .other = kAll & ~(kWhiteSpace | kLetters | kNumbers)};

constexpr Style kTekken = {.not_lead = kNotLead,
                           .cased_words = true,
                           .max_digits = 1,
                           .other = kAll & ~(kWhiteSpace | kLetters | kNumbers),
                           .slash_after_other = true};

constexpr Style kDeepSeekWords = {.not_lead = kLineEnds | kLetters | kPunctuation | kSymbols,
                                  .letters = kLetters | kMarks,
                                  .has_numbers = false,
                                  .other = kPunctuation | kSymbols,
                                  .ascii_punctuation_word = true};

// Length of 's 't 're 've 'm 'll 'd at p, 0 if there is none. Without regard to case the long s
// (U+017F) is an s as well: Unicode folds it.
template <bool kAnyCase>
size_t ContractionLength(const char* p, const char* end) {
  if (end - p < 2 || *p != '\'') return 0;
  const auto lower = [](char c) {
    return kAnyCase && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char first = lower(p[1]);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if (end - p < 3) return 0;
  const char second = lower(p[2]);
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  if (first == 'l' && second == 'l') return 3;
  if (kAnyCase && p[1] == '\xC5' && p[2] == '\xBF') return 3;
  return 0;
}

constexpr bool IsAsciiPunctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
         (c >= '{' && c <= '~');
}

constexpr bool IsAsciiLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

template <Style kStyle>
class Matcher {
 public:
  explicit Matcher(const char* end) : end_(end) {}

  // End of the match that starts at p < end, nullptr if none does.
  const char* MatchAt(const char* p) const {
    if constexpr (kStyle.contractions == Contractions::kExactCase) {
      if (const size_t n = ContractionLength<false>(p, end_)) return p + n;
    } else if constexpr (kStyle.contractions == Contractions::kAnyCase) {
      if (const size_t n = ContractionLength<true>(p, end_)) return p + n;
    }
    if constexpr (kStyle.han_apart) {
      if (const char* match = HanRun(p)) return match;
    }
    if constexpr (kStyle.ascii_punctuation_word) {
      if (const char* match = AsciiPunctuationWord(p)) return match;
    }
    if (const char* match = kStyle.cased_words ? CasedWord(p) : Word(p)) return match;
    if constexpr (kStyle.has_numbers) {
      if (const char* match = Number(p)) return match;
    }
    if (const char* match = Other(p)) return match;
    return Blanks(p);
  }

 private:
  // The end of the run of `set` characters that starts at p.
  const char* Run(const char* p, CategorySet set) const {
    while (p < end_) {
      const char* next = p;
      if (!categories_.In(NextCodePoint(next), set)) break;
      p = next;
    }
    return p;
  }

  const char* NonEmptyRun(const char* p, CategorySet set) const {
    const char* run_end = Run(p, set);
    return run_end == p ? nullptr : run_end;
  }

  const char* SkipSpace(const char* p) const { return p < end_ && *p == ' ' ? p + 1 : p; }

  // Past the optional lead character of a word; p itself if there is none.
  const char* SkipLead(const char* p) const {
    if constexpr (kStyle.lead_is_space_only) return SkipSpace(p);
    const char* next = p;
    return categories_.In(NextCodePoint(next), kStyle.not_lead) ? p : next;
  }

  bool IsHan(char32_t c) const { return c >= kFirstHan && properties_.Has(c, kHan); }

  const char* HanRun(const char* p) const {
    const char* run_end = p;
    for (const char* next = p; next < end_ && IsHan(NextCodePoint(next));) run_end = next;
    return run_end == p ? nullptr : run_end;
  }

  const char* AsciiPunctuationWord(const char* p) const {
    if (!IsAsciiPunctuation(*p)) return nullptr;
    const char* q = p + 1;
    while (q < end_ && IsAsciiLetter(*q)) ++q;
    return q == p + 1 ? nullptr : q;
  }

  const char* Word(const char* p) const {
    const char* after_lead = SkipLead(p);
    if (const char* match = NonEmptyRun(after_lead, kStyle.letters)) return match;
    // Giving the lead back helps where it can be a letter itself (a mark, for Qwen3.5).
    return after_lead == p ? nullptr : NonEmptyRun(p, kStyle.letters);
  }

  const char* CasedWord(const char* p) const {
    const char* after_lead = SkipLead(p);
    const char* match = UpperStarLowerPlus(after_lead);
    if (match == nullptr && after_lead != p) match = UpperStarLowerPlus(p);
    if (match == nullptr) match = UpperPlusLowerStar(after_lead);
    if (match == nullptr && after_lead != p) match = UpperPlusLowerStar(p);
    if (match == nullptr) return nullptr;
    if constexpr (kStyle.contractions == Contractions::kAnyCaseSuffix) {
      match += ContractionLength<true>(match, end_);
    }
    return match;
  }

  // The character's category as a set, or nothing if it is kept out of words.
  CategorySet LetterOfCasedWord(char32_t c) const {
    if constexpr (kStyle.han_apart) {
      if (IsHan(c)) return 0;
    }
    return SetOf(categories_[c]);
  }

  const char* CasedRun(const char* p, CategorySet set) const {
    while (p < end_) {
      const char* next = p;
      if (!(LetterOfCasedWord(NextCodePoint(next)) & set)) break;
      p = next;
    }
    return p;
  }

  const char* UpperStarLowerPlus(const char* p) const {
    // Upper* takes all it can and gives back until one character of lower follows. The characters
    // that it gives back are no lower ones, so lower+ is just the last that is in both sets.
    const char* in_both_end = nullptr;
    const char* q = p;
    while (q < end_) {
      const char* next = q;
      const CategorySet bit = LetterOfCasedWord(NextCodePoint(next));
      if (!(bit & kUpper)) break;
      if (bit & kLower) in_both_end = next;
      q = next;
    }
    const char* lower_end = CasedRun(q, kLower);
    return lower_end != q ? lower_end : in_both_end;
  }

  const char* UpperPlusLowerStar(const char* p) const {
    const char* upper_end = CasedRun(p, kUpper);
    return upper_end == p ? nullptr : CasedRun(upper_end, kLower);
  }

  const char* Number(const char* p) const {
    if constexpr (kStyle.max_digits == 0) return NonEmptyRun(SkipSpace(p), kNumbers);
    const char* q = p;
    for (int i = 0; i < kStyle.max_digits && q < end_; ++i) {
      const char* next = q;
      if (!categories_.In(NextCodePoint(next), kNumbers)) break;
      q = next;
    }
    return q == p ? nullptr : q;
  }

  const char* Other(const char* p) const {
    const char* match = NonEmptyRun(SkipSpace(p), kStyle.other);
    if (match == nullptr || !kStyle.line_ends_after_other) return match;
    const auto is_trailing = [](char c) {
      return c == '\r' || c == '\n' || (kStyle.slash_after_other && c == '/');
    };
    while (match < end_ && is_trailing(*match)) ++match;
    return match;
  }

  const char* Blanks(const char* p) const {
    const char* last = p;            // start of the last blank of the run
    const char* line_end = nullptr;  // past the last line end of the run
    const char* q = p;
    while (q < end_) {
      const char* next = q;
      const char32_t c = NextCodePoint(next);
      if (!categories_.In(c, kWhiteSpace)) break;
      if (c == '\r' || c == '\n') line_end = next;
      last = q;
      q = next;
    }
    if (q == p) return nullptr;
    if (kStyle.blanks_to_line_end && line_end != nullptr) return line_end;
    // A blank before a word belongs to that word, unless it is the only one.
    return q == end_ || last == p ? q : last;
  }

  const char* end_;
  CategoryTable categories_;
  PropertyTable properties_;
};

template <Style kStyle>
bool FindWith(const char* from, const char* end, Match* match) {
  const Matcher<kStyle> matcher(end);
  for (const char* p = from; p < end; NextCodePoint(p)) {
    if (const char* match_end = matcher.MatchAt(p)) {
      *match = {p, match_end};
      return true;
    }
  }
  return false;
}

// The first run of characters that `Predicate` accepts, cut after kMaxLength of them (0: no limit).
template <typename Predicate, int kMaxLength>
bool FindRun(const char* from, const char* end, Match* match) {
  const Predicate accepts;
  const char* p = from;
  while (p < end) {
    const char* q = p;
    for (int n = 0; q < end && (kMaxLength == 0 || n < kMaxLength); ++n) {
      const char* next = q;
      if (!accepts(NextCodePoint(next))) break;
      q = next;
    }
    if (q != p) {
      *match = {p, q};
      return true;
    }
    NextCodePoint(p);
  }
  return false;
}

struct IsNumber {
  CategoryTable categories;
  bool operator()(char32_t c) const { return categories.In(c, kNumbers); }
};

struct IsDeepSeekCjk {  // ideographs up to U+9FA5, Hiragana, Katakana
  bool operator()(char32_t c) const {
    return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF);
  }
};

struct KnownPattern {
  std::string_view expression;
  FindMatch find;
};

#define NIBBLE_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define NIBBLE_BLANKS R"(\s*[\r\n]+|\s+(?!\S)|\s+)"
#define NIBBLE_UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define NIBBLE_LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"
#define NIBBLE_KIMI_UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]])"
#define NIBBLE_KIMI_LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]])"
#define NIBBLE_LEAD R"([^\r\n\p{L}\p{N}]?)"

constexpr KnownPattern kKnownPatterns[] = {
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     FindWith<kGpt2>},
    {NIBBLE_CONTRACTIONS
     R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" NIBBLE_BLANKS,
     FindWith<kLlama3>},
    {NIBBLE_CONTRACTIONS
     R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" NIBBLE_BLANKS,
     FindWith<kQwen2>},
    {NIBBLE_CONTRACTIONS
     R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|)" NIBBLE_BLANKS,
     FindWith<kQwen35>},
    {NIBBLE_LEAD NIBBLE_UPPER "*" NIBBLE_LOWER "+" NIBBLE_CONTRACTIONS "?|" NIBBLE_LEAD NIBBLE_UPPER
                              "+" NIBBLE_LOWER "*" NIBBLE_CONTRACTIONS
                              R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" NIBBLE_BLANKS,
     FindWith<kO200k>},
    {NIBBLE_LEAD NIBBLE_UPPER "*" NIBBLE_LOWER "+|" NIBBLE_LEAD NIBBLE_UPPER "+" NIBBLE_LOWER
                              R"(*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" NIBBLE_BLANKS,
     FindWith<kTekken>},
    {R"([\p{Han}]+|)" NIBBLE_LEAD NIBBLE_KIMI_UPPER "*" NIBBLE_KIMI_LOWER "+" NIBBLE_CONTRACTIONS
     "?|" NIBBLE_LEAD NIBBLE_KIMI_UPPER "+" NIBBLE_KIMI_LOWER "*" NIBBLE_CONTRACTIONS
     R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" NIBBLE_BLANKS,
     FindWith<kKimi>},
    {R"(\p{N}{1,3})", FindRun<IsNumber, 3>},
    {"[一-龥぀-ゟ゠-ヿ]+", FindRun<IsDeepSeekCjk, 0>},
    // The line ends in this one are real characters, as in the published file.
    {R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^)"
     "\r\n"
     R"(\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[)"
     "\r\n"
     R"(]*|)" NIBBLE_BLANKS,
     FindWith<kDeepSeekWords>},
    {R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
     R"(| ?[\p{P}\p{S}]+[\r\n]*|)" NIBBLE_BLANKS,
     FindWith<kDeepSeekWords>},
};

#undef NIBBLE_CONTRACTIONS
#undef NIBBLE_BLANKS
#undef NIBBLE_UPPER
#undef NIBBLE_LOWER
#undef NIBBLE_KIMI_UPPER
#undef NIBBLE_KIMI_LOWER
#undef NIBBLE_LEAD

}  // namespace

const std::string_view kGpt2Pattern = kKnownPatterns[0].expression;
const std::string_view kKimiPattern = kKnownPatterns[6].expression;
static_assert(kKnownPatterns[6].expression.starts_with("[\\p{Han}]"));

FindMatch FindKnownPattern(std::string_view expression) {
  for (const KnownPattern& known : kKnownPatterns) {
    if (known.expression == expression) return known.find;
  }
  return nullptr;
}

}  // namespace nibble::text
