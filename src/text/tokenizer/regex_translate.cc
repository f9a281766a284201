#include "text/tokenizer/regex_translate.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <vector>

#include "text/tokenizer/code_point_set.h"
#include "text/unicode/unicode.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

namespace {

constexpr int kMaxNesting = 100;
constexpr size_t kMaxPatternBytes = 64u << 10;
constexpr size_t kMaxTranslatedBytes = 4u << 20;
constexpr int64_t kMaxRepeat = 1000;

struct NamedCategory {
  std::string_view name;  // lower case
  CategorySet set;
};

constexpr NamedCategory kNamedCategories[] = {
    {"l", kLetters},
    {"lu", SetOf(Category::kLu)},
    {"ll", SetOf(Category::kLl)},
    {"lt", SetOf(Category::kLt)},
    {"lm", SetOf(Category::kLm)},
    {"lo", SetOf(Category::kLo)},
    {"m", kMarks},
    {"mn", SetOf(Category::kMn)},
    {"mc", SetOf(Category::kMc)},
    {"me", SetOf(Category::kMe)},
    {"n", kNumbers},
    {"nd", SetOf(Category::kNd)},
    {"nl", SetOf(Category::kNl)},
    {"no", SetOf(Category::kNo)},
    {"p", kPunctuation},
    {"pc", SetOf(Category::kPc)},
    {"pd", SetOf(Category::kPd)},
    {"ps", SetOf(Category::kPs)},
    {"pe", SetOf(Category::kPe)},
    {"pi", SetOf(Category::kPi)},
    {"pf", SetOf(Category::kPf)},
    {"po", SetOf(Category::kPo)},
    {"s", kSymbols},
    {"sm", SetOf(Category::kSm)},
    {"sc", SetOf(Category::kSc)},
    {"sk", SetOf(Category::kSk)},
    {"so", SetOf(Category::kSo)},
    {"z", kSeparators},
    {"zs", SetOf(Category::kZs)},
    {"zl", SetOf(Category::kZl)},
    {"zp", SetOf(Category::kZp)},
    {"c", kOthers},
    {"cc", kControls},
    {"cf", SetOf(Category::kCf)},
    {"cn", SetOf(Category::kCn)},
    {"co", SetOf(Category::kCo)},
};

bool IsAsciiAlnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

class Translator {
 public:
  Translator(std::string_view pattern, RegexSyntax syntax)
      : pattern_(pattern), is_rust_(syntax == RegexSyntax::kRust) {}

  Result<std::string> Run() {
    if (pattern_.size() > kMaxPatternBytes) return Refuse("a pattern of this size");
    NIBBLE_TRY(Alternation(0));
    if (!AtEnd()) return Refuse("an unmatched )");
    return std::move(out_);
  }

 private:
  bool AtEnd() const { return at_ == pattern_.size(); }
  bool Looking(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  bool Take(std::string_view text) {
    if (!Looking(text)) return false;
    at_ += text.size();
    return true;
  }
  char32_t TakeCodePoint() {
    const char* p = pattern_.data() + at_;
    const char32_t c = NextCodePoint(p);
    at_ = static_cast<size_t>(p - pattern_.data());
    return c;
  }

  tl::unexpected<Error> Refuse(std::string_view what) const {
    return Fail(Code::kUnsupported, "regular expression {:?}: {} at byte {} is not supported",
                pattern_, what, at_);
  }

  Status Alternation(int depth) {
    if (depth > kMaxNesting) return Refuse("deep nesting");
    for (;;) {
      while (!AtEnd() && !Looking("|") && !Looking(")")) {
        NIBBLE_TRY(Repeated(depth));
        if (out_.size() > kMaxTranslatedBytes) return Refuse("a pattern of this size");
      }
      if (!Take("|")) return {};
      out_ += '|';
    }
  }

  // An atom and the quantifier behind it.
  Status Repeated(int depth) {
    const size_t start = out_.size();
    NIBBLE_ASSIGN(const bool repeatable, Atom(depth));
    if (AtEnd()) return {};
    const char c = pattern_[at_];
    const bool is_interval = c == '{';
    if (c != '*' && c != '+' && c != '?' && !is_interval) return {};
    if (!repeatable) return Refuse("a quantifier");
    if (is_interval) {
      NIBBLE_TRY(Interval());
    } else {
      ++at_;
      out_ += c;
    }
    if (Take("?")) {
      if (is_interval && fixed_interval_) return Refuse("{n}?");
      out_ += '?';
    } else if (Take("+")) {
      if (is_interval && !is_rust_) {  // Oniguruma repeats the interval, it is not possessive
        out_.insert(start, "(?:");
        out_ += ")+";
      } else {
        out_ += '+';
      }
    }
    if (Looking("*") || Looking("+") || Looking("?") || Looking("{")) {
      return Refuse("a second quantifier");
    }
    return {};
  }

  Result<int64_t> Number() {
    int64_t value = 0;
    while (!AtEnd() && pattern_[at_] >= '0' && pattern_[at_] <= '9') {
      value = value * 10 + (pattern_[at_++] - '0');
      if (value > kMaxRepeat) return Refuse("a repeat count above 1000");
    }
    return value;
  }

  // {n} {n,} {,m} {n,m}
  Status Interval() {
    ++at_;
    const size_t digits = at_;
    NIBBLE_ASSIGN(const int64_t low, Number());
    const bool has_low = at_ > digits;
    const bool has_comma = Take(",");
    const size_t high_digits = at_;
    NIBBLE_ASSIGN(const int64_t high, Number());
    const bool has_high = at_ > high_digits;
    if (!Take("}") || (!has_low && !has_high) || (has_high && high < low)) {
      return Refuse("an interval that is not {n}, {n,}, {,m} or {n,m}");
    }
    fixed_interval_ = !has_comma;
    if (!has_comma) {
      out_ += fmt::format("{{{}}}", low);
    } else if (has_high) {
      out_ += fmt::format("{{{},{}}}", low, high);
    } else {
      out_ += fmt::format("{{{},}}", low);
    }
    return {};
  }

  // Returns whether a quantifier may follow.
  Result<bool> Atom(int depth) {
    const char c = pattern_[at_];
    if (c == '(') return Group(depth);
    if (c == '[') {
      NIBBLE_ASSIGN(const Class parsed, BracketClass(depth));
      if (caseless_ && !parsed.plain) return Refuse("a class other than plain ranges under (?i)");
      Emit(parsed);
      return true;
    }
    if (c == '\\') return Escape();
    if (Take(".")) {
      out_ += '.';
      return true;
    }
    if (Take("^")) {
      out_ += is_rust_ ? "\\A" : "(?m:^)";
      return false;
    }
    if (Take("$")) {
      out_ += is_rust_ ? "\\z" : "(?m:$)";
      return false;
    }
    if (c == '*' || c == '+' || c == '?' || c == '{') return Refuse("a quantifier");
    EmitLiteral(TakeCodePoint());
    return true;
  }

  Result<bool> Group(int depth) {
    const bool outer_caseless = caseless_;
    const bool at_start = at_ == 0;
    if (Take("(?i)")) {
      // Elsewhere it would bind alternatives in Oniguruma that it does not bind in PCRE2.
      if (!at_start) return Refuse("(?i) inside a pattern");
      caseless_ = true;
      out_ += "(?i)";
      return false;
    }
    bool repeatable = true;
    if (Take("(?i:")) {
      caseless_ = true;
      out_ += "(?i:";
    } else if (Take("(?:")) {
      out_ += "(?:";
    } else if (Take("(?>")) {
      out_ += "(?>";
    } else if (Looking("(?=") || Looking("(?!")) {
      out_ += pattern_.substr(at_, 3);
      at_ += 3;
      repeatable = false;
    } else if (Looking("(?<=") || Looking("(?<!")) {
      out_ += pattern_.substr(at_, 4);
      at_ += 4;
      repeatable = false;
    } else if (Looking("(?") || Looking("(*")) {
      return Refuse("this kind of group");
    } else {
      ++at_;
      out_ += "(?:";  // nothing refers back to a capture
    }
    NIBBLE_TRY(Alternation(depth + 1));
    if (!Take(")")) return Refuse("a group without )");
    out_ += ')';
    caseless_ = outer_caseless;
    return repeatable;
  }

  // A character class in the making. `plain` classes hold only characters and ranges.
  struct Class {
    CodePointSet set;
    bool negated = false;
    bool plain = true;
  };

  Result<bool> Escape() {
    if (Looking("\\A") || Looking("\\z")) {
      out_ += pattern_.substr(at_, 2);
      at_ += 2;
      return false;
    }
    NIBBLE_ASSIGN(const std::optional<CodePointSet> set, SetEscape());
    if (set) {
      Emit({.set = *set});
      return true;
    }
    NIBBLE_ASSIGN(const char32_t c, CharacterEscape());
    EmitLiteral(c);
    return true;
  }

  // \s \d \w \p{..} and their complements; nothing if the escape stands for one character.
  Result<std::optional<CodePointSet>> SetEscape() {
    const bool complement = Looking("\\S") || Looking("\\D") || Looking("\\W") || Looking("\\P");
    CodePointSet set;
    if (Take("\\s") || Take("\\S")) {
      set = CodePointSet(RangesOf(kWhiteSpace));
    } else if (Take("\\d") || Take("\\D")) {
      set = CodePointSet(RangesOf(SetOf(Category::kNd)));
    } else if (Take("\\w") || Take("\\W")) {
      set = CodePointSet(RangesOf(is_rust_ ? kRustWord : kOnigWord));
    } else if (Take("\\p{") || Take("\\P{")) {
      NIBBLE_ASSIGN(set, NamedProperty());
    } else {
      return std::optional<CodePointSet>();
    }
    return std::optional<CodePointSet>(complement ? set.Complement() : set);
  }

  Result<CodePointSet> NamedProperty() {
    const bool complement = Take("^");
    const size_t close = pattern_.find('}', at_);
    if (close == std::string_view::npos) return Refuse("\\p without }");
    std::string name(pattern_.substr(at_, close - at_));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    std::optional<CodePointSet> set;
    if (name == "han" || name == "script=han" || name == "sc=han")
      set = CodePointSet(RangesOf(kHan));
    for (const NamedCategory& known : kNamedCategories) {
      if (known.name == name) set = CodePointSet(RangesOf(known.set));
    }
    if (!set) return Refuse(fmt::format("\\p{{{}}}", name));
    at_ = close + 1;
    return complement ? set->Complement() : *set;
  }

  Result<char32_t> CharacterEscape() {
    ++at_;
    if (AtEnd()) return Refuse("a lone \\");
    const char c = pattern_[at_];
    constexpr std::string_view kNames = "tnrfvae";
    constexpr std::string_view kValues = "\t\n\r\f\v\a\x1B";
    if (const size_t i = kNames.find(c); i != std::string_view::npos) {
      ++at_;
      return static_cast<char32_t>(kValues[i]);
    }
    if (Take("x{")) return Hex(1, 6, "}");
    if (Take("x")) return Hex(2, 2, "");
    if (Take("u")) return Hex(4, 4, "");
    if (IsAsciiAlnum(c)) return Refuse(fmt::format("\\{}", c));
    return TakeCodePoint();
  }

  Result<char32_t> Hex(size_t min_digits, size_t max_digits, std::string_view close) {
    char32_t value = 0;
    size_t digits = 0;
    for (; digits < max_digits && !AtEnd(); ++digits, ++at_) {
      const char c = pattern_[at_];
      const bool is_digit = c >= '0' && c <= '9';
      const char lower = static_cast<char>(c | 32);
      if (!is_digit && !(lower >= 'a' && lower <= 'f')) break;
      value = value * 16 + static_cast<char32_t>(is_digit ? c - '0' : lower - 'a' + 10);
    }
    const bool is_scalar = value <= 0x10FFFF && !(value >= 0xD800 && value <= 0xDFFF);
    // \x80 and above are bytes in Oniguruma, not code points.
    const bool is_byte = max_digits == 2 && value >= 0x80;
    if (digits < min_digits || !is_scalar || is_byte || !Take(close)) {
      return Refuse("a malformed code point");
    }
    return value;
  }

  Result<Class> BracketClass(int depth) {
    if (depth > kMaxNesting) return Refuse("deep nesting");
    ++at_;
    Class result{.negated = Take("^")};
    std::optional<CodePointSet> before;  // the intersection of the operands before this one
    std::vector<CodePointRange> operand;
    const auto close_operand = [&] {
      CodePointSet set(std::move(operand));
      operand.clear();
      before = before ? before->Intersection(set) : std::move(set);
    };
    if (Looking("]")) return Refuse("] as the first member of a class");
    while (!Looking("]")) {
      if (AtEnd()) return Refuse("a class without ]");
      if (Take("&&")) {
        close_operand();
        result.plain = false;
      } else if (Looking("[:")) {
        return Refuse("[: :]");
      } else if (Looking("[")) {
        NIBBLE_ASSIGN(const Class inner, BracketClass(depth + 1));
        Append(inner.negated ? inner.set.Complement() : inner.set, &operand);
        result.plain = false;
      } else {
        NIBBLE_TRY(ClassMember(&operand, &result.plain));
      }
    }
    ++at_;
    close_operand();
    result.set = *std::move(before);
    return result;
  }

  static void Append(const CodePointSet& set, std::vector<CodePointRange>* ranges) {
    ranges->insert(ranges->end(), set.ranges().begin(), set.ranges().end());
  }

  // One character, range or set inside [ ].
  Status ClassMember(std::vector<CodePointRange>* operand, bool* plain) {
    NIBBLE_ASSIGN(const std::optional<CodePointSet> set, SetEscape());
    if (set) {
      Append(*set, operand);
      *plain = false;
      // "\s-x" means different things in different engines.
      if (Looking("-") && !Looking("-]")) return Refuse("a range that starts with a set");
      return {};
    }
    NIBBLE_ASSIGN(const char32_t first, ClassCharacter());
    char32_t last = first;
    if (Looking("-") && !Looking("-]")) {
      ++at_;
      if (AtEnd() || Looking("[")) return Refuse("a range without an end");
      NIBBLE_ASSIGN(last, ClassCharacter());
      if (last < first) return Refuse("a range that runs backwards");
    }
    operand->push_back({first, last});
    return {};
  }

  Result<char32_t> ClassCharacter() {
    if (Looking("\\")) return CharacterEscape();
    return TakeCodePoint();
  }

  void EmitLiteral(char32_t c) {
    if (c < 0x80 && IsAsciiAlnum(static_cast<char>(c))) {
      out_ += static_cast<char>(c);
    } else {
      fmt::format_to(std::back_inserter(out_), "\\x{{{:x}}}", static_cast<uint32_t>(c));
    }
  }

  void Emit(const Class& parsed) {
    std::string ranges;
    const auto emit_range = [&](char32_t first, char32_t last) {
      if (first > last) return;
      fmt::format_to(std::back_inserter(ranges), "\\x{{{:x}}}-\\x{{{:x}}}",
                     static_cast<uint32_t>(first), static_cast<uint32_t>(last));
    };
    for (const CodePointRange& range : parsed.set.ranges()) {
      // Surrogates may not be written and never occur.
      emit_range(range.first, std::min<char32_t>(range.last, 0xD7FF));
      emit_range(std::max<char32_t>(range.first, 0xE000), range.last);
    }
    if (ranges.empty()) {
      out_ += parsed.negated ? "(?s:.)" : "(?!)";
    } else {
      out_ += parsed.negated ? "[^" : "[";
      out_ += ranges;
      out_ += ']';
    }
  }

  std::string_view pattern_;
  bool is_rust_;
  size_t at_ = 0;
  std::string out_;
  bool caseless_ = false;
  bool fixed_interval_ = false;
};

}  // namespace

Result<std::string> TranslatePattern(std::string_view pattern, RegexSyntax syntax) {
  return Translator(pattern, syntax).Run();
}

}  // namespace nibble::text
