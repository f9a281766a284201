// The container's rules. Verdicts come from the reference reader (tests/golden/formats/
// safetensors_cases.json, made by tools/make_formats_goldens.py); messages are ours.
#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "base/file.h"
#include "testing/golden.h"
#include "testing/temp_folder.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

// The specification forbids these; the reference reader does not look.
const std::set<std::string> kStricter = {"repeated name, same bytes", "header starts with a space"};

std::string FromHex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  }
  return bytes;
}

// Parses from a heap block of exactly the file's size, so that sanitizers see any read beyond it.
Result<SafetensorsHeader> Parse(std::string_view file) {
  const auto exact = std::make_unique<std::byte[]>(file.size());
  std::memcpy(exact.get(), file.data(), file.size());
  return ParseSafetensors({exact.get(), file.size()}, "x.safetensors");
}

std::string File(std::string_view header, std::string_view data) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file.append(header).append(data);
}

std::string ErrorOf(std::string_view header, std::string_view data = "") {
  const auto parsed = Parse(File(header, data));
  if (parsed) return "accepted";
  EXPECT_EQ(parsed.error().code(), Code::kCorruption);
  return parsed.error().message();
}

TEST(SafetensorsTest, AgreesWithTheReferenceReader) {
  const auto text = ReadFile(GoldenPath("formats/safetensors_cases.json"));
  ASSERT_TRUE(text) << text.error().message();
  const json::value cases = json::parse(*text);
  ASSERT_GT(cases.get_array().size(), 80u);
  for (const json::value& item : cases.get_array()) {
    const std::string name(item.at("name").get_string());
    const auto parsed = Parse(FromHex(item.at("hex").get_string()));
    const bool expected = item.at("reference").get_string().empty() && !kStricter.contains(name);
    EXPECT_EQ(parsed.has_value(), expected)
        << name << ": " << (parsed ? "accepted" : parsed.error().message())
        << "; reference: " << item.at("reference");
  }
}

TEST(SafetensorsTest, ErrorsNameFileTensorValueAndExpectation) {
  const std::map<std::string, std::string> cases = {
      {R"({"w":{"dtype":"F7","shape":[2],"data_offsets":[0,2]}})",
       R"(x.safetensors: tensor "w": unknown dtype "F7")"},
      {R"({"w":{"dtype":"U8","shape":[-2],"data_offsets":[0,2]}})",
       R"(x.safetensors: tensor "w": shape holds the negative number -2, expected whole numbers that are not negative)"},
      {R"({"w":{"dtype":"U8","shape":[1.5],"data_offsets":[0,2]}})",
       R"(x.safetensors: tensor "w": shape holds the number 1.5, expected whole numbers that are not negative)"},
      {R"({"w":{"dtype":"U8","shape":"2","data_offsets":[0,2]}})",
       R"(x.safetensors: tensor "w": shape is a string, expected an array of whole numbers)"},
      {R"({"w":{"dtype":["U8"],"shape":[2],"data_offsets":[0,2]}})",
       R"(x.safetensors: tensor "w": dtype is an array, expected a string)"},
      {R"({"w":{"shape":[2],"data_offsets":[0,2]}})", R"(x.safetensors: tensor "w": no dtype)"},
      {R"({"w":{"dtype":"U8","shape":[2],"shape":[2],"data_offsets":[0,2]}})",
       R"(x.safetensors: tensor "w": shape is given twice)"},
      {R"({"w":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,2]}})",
       R"(x.safetensors: tensor "w": more than 8 dimensions)"},
      {R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[1,2]}})",
       R"(x.safetensors: tensor "w": data_offsets [1, 2], expected to begin at 0 (the bytes must have no hole and no overlap))"},
      {R"({"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})",
       R"(x.safetensors: tensor "w": data_offsets end at 3, but the file holds 2 bytes of tensors; it is cut short)"},
      {R"({"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,2]}})",
       R"(x.safetensors: tensor "w": data_offsets [0, 2] hold 2 bytes, but shape [2] of BF16 needs 4)"},
      {R"({"w":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,2]}})",
       R"(x.safetensors: tensor "w": shape [4611686018427387904] of F64 overflows 64 bits)"},
      {R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
       R"(x.safetensors: 1 bytes of tensors are described, but the file holds 2 after its header)"},
      {R"({"__metadata__":{"a":1}})",
       R"(x.safetensors: __metadata__ value "a" is the number 1, expected a string)"},
      {R"({"w":3})", R"(x.safetensors: entry "w" is the number 3, expected an object)"},
      {R"({"w":)", R"(x.safetensors: the header is not valid JSON at byte 13: incomplete JSON)"},
      {R"([])", R"(x.safetensors: the header does not begin with '{')"},
  };
  for (const auto& [header, message] : cases) EXPECT_EQ(ErrorOf(header, "ab"), message);
  EXPECT_EQ(ErrorOf(R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                    R"("w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                    "ab"),
            R"(x.safetensors: tensor "w" is listed twice)");
}

TEST(SafetensorsTest, NestingIsLimited) {
  const std::string deep(100'000, '[');
  EXPECT_NE(ErrorOf(R"({"w":{"x":)" + deep).find("too deep"), std::string::npos);
}

TEST(SafetensorsTest, LongNamesAreCutInMessages) {
  const std::string name(100'000, 'n');
  const std::string message = ErrorOf("{\"" + name + "\":3}");
  EXPECT_LT(message.size(), 300u);
  EXPECT_NE(message.find("nnn\"..."), std::string::npos);
}

TEST(SafetensorsTest, EveryPrefixOfAFileIsRefused) {
  const auto text = ReadFile(GoldenPath("formats/sharded_bf16/model-00003-of-00003.safetensors"));
  ASSERT_TRUE(text);
  ASSERT_TRUE(Parse(*text));
  for (size_t size = 0; size < text->size(); ++size) {
    ASSERT_FALSE(Parse(std::string_view(*text).substr(0, size))) << size;
  }
  EXPECT_FALSE(Parse(*text + "x"));
}

TEST(SafetensorsTest, OffsetsAreOfTheFile) {
  const auto parsed = Parse(File(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},)"
                                 R"("a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})",
                                 "abc"));
  ASSERT_TRUE(parsed) << parsed.error().message();
  ASSERT_EQ(parsed->tensors.size(), 2u);
  EXPECT_EQ(parsed->tensors[0].name, "a");
  EXPECT_EQ(parsed->tensors[0].shape.rank(), 0);
  EXPECT_EQ(parsed->tensors[1].end - parsed->tensors[1].begin, 2);
  EXPECT_EQ(parsed->tensors[1].begin, parsed->tensors[0].end);
}

TEST(SafetensorsTest, OpenSaysWhichFile) {
  TempFolder folder;
  const std::string path = folder.Write("cut.safetensors", std::string("\x40\0\0\0\0\0\0\0{", 9));
  const auto opened = OpenSafetensors(path);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().message(),
            path + ": header length 64, but only 1 bytes follow; the file is cut short");
  EXPECT_EQ(OpenSafetensors(folder.path() + "/none").error().code(), Code::kNotFound);
  EXPECT_FALSE(OpenSafetensors(folder.Write("empty.safetensors", "")));
}

}  // namespace
}  // namespace nibble::formats
