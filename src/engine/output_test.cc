#include "engine/output.h"

#include <gtest/gtest.h>

#include <random>

namespace nibble::engine {
namespace {

struct Outcome {
  std::string text;
  std::string stop;
  bool operator==(const Outcome&) const = default;
};

// Cuts at the first completed stop string, byte by byte.
Outcome Naive(const std::string& text, const std::vector<std::string>& stops, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string found;
    for (const std::string& stop : stops)
      if (stop.size() > found.size() && std::string_view(text).substr(0, end).ends_with(stop))
        found = stop;
    if (!found.empty()) return {text.substr(0, include ? end : end - found.size()), found};
  }
  return {text, ""};
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  const std::vector<std::string> stops = {"</end>"};
  StopMatcher matcher(stops, false);
  EXPECT_TRUE(matcher.Append("a < b", true));
  EXPECT_EQ(matcher.TakeCertain(), "a < b");
  EXPECT_TRUE(matcher.Append(" <", true));
  EXPECT_EQ(matcher.TakeCertain(), " ");
  EXPECT_TRUE(matcher.Append("/en", true));
  EXPECT_EQ(matcher.TakeCertain(), "");
  EXPECT_TRUE(matcher.Append("ough", true));
  EXPECT_EQ(matcher.TakeCertain(), "</enough");
  EXPECT_TRUE(matcher.Append(" </end", true));
  EXPECT_EQ(matcher.TakeCertain(), " ");
  EXPECT_FALSE(matcher.Append("> and more", true));
  EXPECT_EQ(matcher.TakeAll(), "");
  EXPECT_EQ(matcher.stop_string(), "</end>");
}

TEST(StopMatcher, HeldTextComesOutAtTheEnd) {
  const std::vector<std::string> stops = {"stop"};
  StopMatcher matcher(stops, false);
  EXPECT_TRUE(matcher.Append("please st", true));
  EXPECT_EQ(matcher.TakeCertain(), "please ");
  EXPECT_EQ(matcher.TakeAll(), "st");
  EXPECT_EQ(matcher.stop_string(), "");
}

TEST(StopMatcher, EarlyStopsAreText) {
  const std::vector<std::string> stops = {"x"};
  StopMatcher matcher(stops, true);
  EXPECT_TRUE(matcher.Append("axb", false));
  EXPECT_FALSE(matcher.Append("cxd", true));
  EXPECT_EQ(matcher.TakeAll(), "axbcx");
}

TEST(StopMatcher, EqualsTheNaiveSearchForEveryCut) {
  std::mt19937 random(3);
  const auto word = [&](size_t length) {
    std::string text;
    for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(word(1 + random() % 6));
    const std::string text = word(random() % 40);
    const bool include = random() % 2 == 0;
    const Outcome want = Naive(text, stops, include);

    StopMatcher matcher(stops, include);
    std::string got;
    bool goes_on = true;
    for (size_t at = 0; at < text.size() && goes_on;) {
      const size_t length = random() % 5;
      goes_on = matcher.Append(text.substr(at, length), true);
      at += length;
      got += matcher.TakeCertain();
      ASSERT_TRUE(want.text.starts_with(got)) << "leaked";
    }
    got += matcher.TakeAll();
    ASSERT_EQ((Outcome{got, matcher.stop_string()}), want) << text;
  }
}

}  // namespace
}  // namespace nibble::engine
