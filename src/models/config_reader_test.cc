// Lists of numbers, and configs of text models inside multimodal wrappers.
#include "models/config_reader.h"

#include <gtest/gtest.h>

namespace nibble::models {
namespace {

boost::json::object Parse(const char* text) { return boost::json::parse(text).as_object(); }

std::string Message(const ConfigReader& reader) {
  return reader.status() ? "" : reader.status().error().message();
}

TEST(ConfigReader, ReadsListsOfNumbers) {
  const auto object = Parse(R"({"flags": [1, 0, 2], "factors": [1, 2.5], "none": null})");
  ConfigReader reader(object, "config.json");
  EXPECT_EQ(reader.Ints("flags", 0, 2), (std::vector<int64_t>{1, 0, 2}));
  EXPECT_EQ(reader.Floats("factors", 0, 10), (std::vector<double>{1.0, 2.5}));
  EXPECT_TRUE(reader.Ints("none", 0, 2).empty());
  EXPECT_TRUE(reader.Ints("absent", 0, 2).empty());
  EXPECT_EQ(Message(reader), "");
}

TEST(ConfigReader, ListsNameWhatIsWrong) {
  for (const auto& [text, expected] : std::vector<std::pair<const char*, const char*>>{
           {R"({"flags": [1, 3]})", "flags holds 3: expected numbers in 0..2"},
           {R"({"flags": [1, "x"]})", "flags holds \"x\""},
           {R"({"flags": [0.5]})", "flags holds 5E-1"},
           {R"({"flags": 7})", "flags is 7: expected a list"}}) {
    const auto object = Parse(text);
    ConfigReader reader(object, "config.json");
    reader.Ints("flags", 0, 2);
    EXPECT_NE(Message(reader).find(expected), std::string::npos) << Message(reader);
  }
}

TEST(TextConfig, IsTheConfigItselfWithDefaults) {
  const auto text = TextConfig(Parse(R"({"hidden_size": 64, "head_dim": null})"),
                               R"({"head_dim": 256, "hidden_size": 1})");
  EXPECT_EQ(text.at("hidden_size"), 64);
  EXPECT_EQ(text.at("head_dim"), 256);
}

TEST(TextConfig, OfAWrapperIsTheNestedOneThenTheWrapperThenDefaults) {
  const auto text =
      TextConfig(Parse(R"({"tie_word_embeddings": true, "vocab_size": 3, "text_config":
                                         {"vocab_size": 9}})"),
                 R"({"tie_word_embeddings": false, "head_dim": 256})");
  EXPECT_EQ(text.at("vocab_size"), 9);
  EXPECT_EQ(text.at("tie_word_embeddings"), true);
  EXPECT_EQ(text.at("head_dim"), 256);
}

}  // namespace
}  // namespace nibble::models
