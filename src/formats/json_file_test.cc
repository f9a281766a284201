#include "formats/json_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace nibble::formats {
namespace {

TEST(JsonFileTest, ReadsWhatPythonWritesForSpecialFloats) {
  const auto object = ParseJsonObject(
      R"({"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \" Infinity", "d": {"__float__": "Infinity"},
          "e": {"__float__": "odd"}, "f": {"__float__": "NaN", "g": 1}})",
      "x.json");
  ASSERT_TRUE(object) << object.error().message();
  EXPECT_TRUE(std::isnan(object->at("a").as_double()));
  EXPECT_EQ(object->at("b").as_array()[0].as_double(), -INFINITY);
  EXPECT_EQ(object->at("b").as_array()[1].as_double(), INFINITY);
  EXPECT_EQ(object->at("c").as_string(), "NaN \" Infinity");
  EXPECT_EQ(object->at("d").as_double(), INFINITY);
  EXPECT_TRUE(object->at("e").is_object());
  EXPECT_TRUE(object->at("f").is_object());
}

TEST(JsonFileTest, KeepsKeyOrderAndTheLastOfRepeatedKeys) {
  const auto object = ParseJsonObject(R"({"z": 1, "a": 2, "z": 3})", "x.json");
  ASSERT_TRUE(object);
  EXPECT_EQ(object->at("z").as_int64(), 3);
  EXPECT_EQ(object->size(), 2u);
}

TEST(JsonFileTest, ErrorsNameFileAndPlace) {
  const auto error = [](const std::string& text) {
    const auto object = ParseJsonObject(text, "dir/x.json");
    return object ? std::string() : object.error().message();
  };
  EXPECT_EQ(error("[1]"), "dir/x.json: expected a JSON object, found array");
  EXPECT_EQ(error("{\n\"a\": }"), "dir/x.json: not valid JSON at line 2, column 6: syntax error");
  EXPECT_NE(error(""), "");
  EXPECT_NE(error("{} {}").find("extra data"), std::string::npos);
  EXPECT_NE(error("{\"a\": N}"), "");
  EXPECT_NE(error("{\"a\": -Infinit}"), "");
  EXPECT_NE(error("{\"a\":" + std::string(1000, '[')).find("too deep"), std::string::npos);
}

TEST(JsonFileTest, QuotedNamesAreShortAndPrintable) {
  EXPECT_EQ(Quoted(std::string_view("a\"\0\n", 4)), R"("a\"\u0000\n")");
  std::string wide;
  for (int i = 0; i < 100; ++i) wide += "é";
  EXPECT_EQ(Quoted("x" + wide), "\"x" + wide.substr(0, 158) + "\"...");
}

}  // namespace
}  // namespace nibble::formats
