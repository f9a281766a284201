#include "text/tokenizer/regex.h"

#include <gtest/gtest.h>

#include <string>

#include "text/tokenizer/regex_translate.h"

namespace nibble::text {
namespace {

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
    const auto translated = TranslateOnigurumaPattern(expression);
    ASSERT_FALSE(translated) << expression << " became " << *translated;
    EXPECT_EQ(translated.error().code(), Code::kUnsupported);
    EXPECT_NE(translated.error().message().find("regular expression"), std::string::npos);
  }
}

TEST(RegexTranslate, DeepAndLongExpressionsAreRefused) {
  EXPECT_FALSE(TranslateOnigurumaPattern(std::string(5000, '(').append(5000, ')')));
  EXPECT_FALSE(TranslateOnigurumaPattern(std::string(5000, '[').append("a").append(5000, ']')));
  EXPECT_FALSE(TranslateOnigurumaPattern(std::string(1 << 20, 'a')));
}

TEST(Regex, CatastrophicBacktrackingEndsInAnError) {
  const auto regex = Regex::Compile("(?:x+x+)+[yz]");
  ASSERT_TRUE(regex) << regex.error().message();
  Match match;
  const auto found = regex->Find(std::string(5000, 'x'), 0, &match);
  ASSERT_FALSE(found) << "found something";
  EXPECT_EQ(found.error().code(), Code::kInvalidArgument);
}

TEST(Regex, FindsFromAnOffsetAndSeesWhatIsBefore) {
  const auto regex = Regex::Compile("(?<=a)b");
  ASSERT_TRUE(regex) << regex.error().message();
  const std::string text = "xbab";
  Match match;
  ASSERT_TRUE(*regex->Find(text, 0, &match));
  EXPECT_EQ(match.begin - text.data(), 3);
  ASSERT_TRUE(*regex->Find(text, 3, &match));
  EXPECT_EQ(match.end - text.data(), 4);
  EXPECT_FALSE(*regex->Find(text, 4, &match));
}

}  // namespace
}  // namespace nibble::text
