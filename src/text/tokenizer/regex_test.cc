#include "text/tokenizer/regex.h"

#include <gtest/gtest.h>

#include <array>
#include <initializer_list>
#include <string>
#include <string_view>

#include "text/tokenizer/regex_translate.h"

namespace nibble::text {
namespace {

Result<std::string> Translate(std::string_view pattern) {
  return TranslatePattern(pattern, RegexSyntax::kOniguruma);
}

// What expressions match is compared with `tokenizers` in tokenizer_golden_test.cc.

TEST(RegexTranslate, RefusesWhatMayMeanSomethingElse) {
  for (const char* expression : {"\\b",        "\\G",         "\\h",        "\\1",
                                 "(?<name>a)", "(?m)a",       "a(?i)b",     "(?(1)a)",
                                 "(*UTF)a",    "[[:alpha:]]", "\\p{Greek}", "\\p{L",
                                 "[\\s-x]",    "[]a]",        "[a",         "(a",
                                 "a)",         "a**",         "*a",         "a{2}?",
                                 "a{3,2}",     "a{x}",        "a{9999}",    "\\x{110000}",
                                 "\\ud800",    "\\xff",       "\\",         "(?i:[^\\p{L}])",
                                 "[z-a]",      "^*"}) {
    const auto translated = Translate(expression);
    ASSERT_FALSE(translated) << expression << " became " << *translated;
    EXPECT_EQ(translated.error().code(), Code::kUnsupported);
    EXPECT_NE(translated.error().message().find("regular expression"), std::string::npos);
  }
}

TEST(RegexTranslate, DeepAndLongExpressionsAreRefused) {
  EXPECT_FALSE(Translate(std::string(5000, '(').append(5000, ')')));
  EXPECT_FALSE(Translate(std::string(5000, '[').append("a").append(5000, ']')));
  EXPECT_FALSE(Translate(std::string(1 << 20, 'a')));
}

TEST(Regex, CatastrophicBacktrackingEndsInAnError) {
  const auto regex = Regex::Compile("(?:x+x+)+[yz]", RegexSyntax::kOniguruma);
  ASSERT_TRUE(regex) << regex.error().message();
  Match match;
  const auto found = regex->Find(std::string(5000, 'x'), 0, &match);
  ASSERT_FALSE(found) << "found something";
  EXPECT_EQ(found.error().code(), Code::kInvalidArgument);
}

TEST(Regex, FindsFromAnOffsetAndSeesWhatIsBefore) {
  const auto regex = Regex::Compile("(?<=a)b", RegexSyntax::kOniguruma);
  ASSERT_TRUE(regex) << regex.error().message();
  const std::string text = "xbab";
  Match match;
  ASSERT_TRUE(*regex->Find(text, 0, &match));
  EXPECT_EQ(match.begin - text.data(), 3);
  ASSERT_TRUE(*regex->Find(text, 3, &match));
  EXPECT_EQ(match.end - text.data(), 4);
  EXPECT_FALSE(*regex->Find(text, 4, &match));
}

// The places where Rust's syntax means something else than Oniguruma's.
TEST(RegexTranslate, RustsSyntax) {
  const auto first = [](std::string_view expression, std::string_view text, RegexSyntax syntax) {
    const auto regex = Regex::Compile(expression, syntax);
    Match match{};
    const auto found = regex ? regex->Find(text, 0, &match) : Result<bool>(false);
    if (!found || !*found) return std::string("none");
    return std::string(match.begin, match.end);
  };
  for (const auto& [expression, text, rust, oniguruma] :
       std::initializer_list<std::array<std::string_view, 4>>{
           {"a{1,2}+", "aaaa", "aa", "aaaa"},  // possessive; a repeated group
           {"a{1,2}+a", "aa", "none", "aa"},   // the same
           {"^b", "a\nb", "none", "b"},        // ends of the text; of lines
           {"a$", "a\nb", "none", "a"},
           {"\\w", "\u200d", "\u200d", "none"}}) {  // a joiner is part of words
    EXPECT_EQ(first(expression, text, RegexSyntax::kRust), rust) << expression;
    EXPECT_EQ(first(expression, text, RegexSyntax::kOniguruma), oniguruma) << expression;
  }
  for (const std::string_view han : {"\\p{Han}", "\\p{Script=Han}", "\\p{sc=Han}"}) {
    EXPECT_EQ(first(han, "aあ漢", RegexSyntax::kRust), "漢");
  }
}

}  // namespace
}  // namespace nibble::text
