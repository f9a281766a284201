#include "formats/gguf_file.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "testing/gguf_writer.h"

namespace nibble::formats {
namespace {

Result<std::shared_ptr<const GgufFile>> Parse(const std::string& bytes) {
  return GgufFile::Parse(std::as_bytes(std::span(bytes)), "test.gguf", nullptr);
}

// A header whose counts, keys and tensors are all there.
GgufWriter Small() {
  GgufWriter writer;
  writer.AddString("general.architecture", "llama");
  writer.AddU32("answer", 42);
  writer.AddTensor("a", {2, 3}, 0, std::string(24, 'a'));
  writer.AddTensor("b", {32}, 8, std::string(34, 'b'));
  return writer;
}

TEST(GgufFile, ReadsMetadataAndTensors) {
  GgufWriter writer = Small();
  writer.AddStrings("names", {"x", "", "yz"});
  writer.AddArray<float>("floats", 6, {1.5f, -2.0f});
  writer.Add<int64_t>("negative", 11, -7);
  writer.AddBool("flag", true);
  const std::string bytes = writer.Build();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file) << file.error().message();
  const GgufFile& gguf = **file;

  EXPECT_EQ(*gguf.GetString("general.architecture"), "llama");
  EXPECT_EQ(*gguf.GetInteger("answer", 0, 100), 42);
  EXPECT_EQ(*gguf.GetInteger("negative", -10, 0), -7);
  EXPECT_EQ(*gguf.GetFloat("answer"), 42.0);
  EXPECT_TRUE(*gguf.GetBool("flag"));
  EXPECT_EQ(gguf.GetStrings("names")->size(), 3u);
  EXPECT_EQ((*gguf.GetStrings("names"))[2], "yz");
  EXPECT_EQ((*gguf.GetNumbers("floats", 2))->FloatAt(1), -2.0);

  ASSERT_EQ(gguf.tensors().size(), 2u);
  const GgufTensor* a = gguf.FindTensor("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->shape, (Shape{3, 2}));
  EXPECT_EQ(a->bytes.size(), 24u);
  EXPECT_EQ(static_cast<char>(a->bytes[0]), 'a');
  const GgufTensor* b = gguf.FindTensor("b");
  EXPECT_EQ(b->type, GgmlType::kQ8_0);
  EXPECT_EQ(b->bytes.size(), 34u);
  EXPECT_EQ(static_cast<char>(b->bytes[33]), 'b');
}

TEST(GgufFile, GettersNameFileKeyAndKind) {
  const std::string bytes = Small().Build();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file);
  const auto message = [](const auto& result) { return result.error().message(); };
  EXPECT_EQ(message((*file)->GetInteger("missing", 0, 1)),
            "test.gguf: metadata key \"missing\" is missing");
  EXPECT_EQ(message((*file)->GetInteger("answer", 0, 7)),
            "test.gguf: answer is 42, expected 0 to 7");
  EXPECT_EQ(message((*file)->GetString("answer")), "test.gguf: answer is U32, expected STRING");
  EXPECT_EQ(message((*file)->GetStrings("answer")),
            "test.gguf: answer is U32, expected an array of STRING");
}

TEST(GgufFile, EveryTruncationIsAnError) {
  const std::string bytes = Small().Build();
  for (size_t length = 0; length < bytes.size(); ++length) {
    const auto file = Parse(bytes.substr(0, length));
    ASSERT_FALSE(file) << length;
    EXPECT_EQ(file.error().code(), Code::kCorruption) << length;
  }
}

struct Malformed {
  const char* name;
  std::function<void(GgufWriter&)> change;
  Code code;
  const char* message;  // part of it
};

class GgufFileMalformed : public testing::TestWithParam<Malformed> {};

TEST_P(GgufFileMalformed, IsRefusedByName) {
  GgufWriter writer = Small();
  GetParam().change(writer);
  const std::string bytes = writer.Build();
  const auto file = Parse(bytes);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code(), GetParam().code) << file.error().message();
  EXPECT_NE(file.error().message().find(GetParam().message), std::string::npos)
      << file.error().message();
  EXPECT_TRUE(file.error().message().starts_with("test.gguf: "));
}

std::string Number(uint64_t value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}
std::string Type(uint32_t value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

INSTANTIATE_TEST_SUITE_P(
    All, GgufFileMalformed,
    testing::Values(
        Malformed{"version1", [](GgufWriter& w) { w.version = 1; }, Code::kUnsupported,
                  "GGUF version 1; supported: 2 and 3"},
        Malformed{"big_endian", [](GgufWriter& w) { w.version = 0x03000000; }, Code::kUnsupported,
                  "big-endian"},
        Malformed{"negative_count", [](GgufWriter& w) { w.extra_tensors = -3; }, Code::kCorruption,
                  "negative counts: -1 tensors"},
        Malformed{"huge_counts", [](GgufWriter& w) { w.extra_values = int64_t{1} << 60; },
                  Code::kCorruption, "test.gguf"},
        Malformed{"repeated_key", [](GgufWriter& w) { w.AddU32("answer", 1); }, Code::kCorruption,
                  "\"answer\" occurs twice"},
        Malformed{"unknown_type", [](GgufWriter& w) { w.AddRaw("odd", 13, ""); }, Code::kCorruption,
                  "\"odd\" has unknown type 13"},
        Malformed{"nested_array", [](GgufWriter& w) { w.AddRaw("nest", 9, Type(9)); },
                  Code::kCorruption, "array of arrays"},
        Malformed{"huge_array",
                  [](GgufWriter& w) { w.AddRaw("big", 9, Type(4) + Number(uint64_t{1} << 62)); },
                  Code::kCorruption, "at most 1073741824"},
        Malformed{"long_array",
                  [](GgufWriter& w) { w.AddRaw("big", 9, Type(12) + Number(uint64_t{1} << 30)); },
                  Code::kCorruption, "truncated: \"big\" needs 8589934592 bytes"},
        Malformed{"huge_string", [](GgufWriter& w) { w.AddRaw("text", 8, Number(~uint64_t{0})); },
                  Code::kCorruption, "at most 1073741824"},
        Malformed{"alignment_type",
                  [](GgufWriter& w) { w.Add<uint64_t>("general.alignment", 10, 32); },
                  Code::kCorruption, "general.alignment is U64, expected U32"},
        Malformed{"alignment_value", [](GgufWriter& w) { w.AddU32("general.alignment", 48); },
                  Code::kCorruption, "general.alignment is 48, expected a power of two"},
        Malformed{"alignment_zero", [](GgufWriter& w) { w.AddU32("general.alignment", 0); },
                  Code::kCorruption, "expected a power of two"},
        Malformed{"repeated_tensor",
                  [](GgufWriter& w) { w.AddTensor("a", {1}, 0, std::string(4, 0)); },
                  Code::kCorruption, "tensor \"a\" occurs twice"},
        Malformed{
            "long_name",
            [](GgufWriter& w) { w.AddTensor(std::string(64, 'n'), {1}, 0, std::string(4, 0)); },
            Code::kCorruption, "name of 64 bytes, at most 63"},
        Malformed{"dimensions",
                  [](GgufWriter& w) { w.AddTensor("c", {1, 1, 1, 1, 1}, 0, std::string(4, 0)); },
                  Code::kCorruption, "\"c\" has 5 dimensions, at most 4"},
        Malformed{"negative_dimension", [](GgufWriter& w) { w.AddTensor("c", {-1}, 0, ""); },
                  Code::kCorruption, "\"c\" has a dimension of -1"},
        Malformed{
            "overflow",
            [](GgufWriter& w) { w.AddTensor("c", {int64_t{1} << 32, int64_t{1} << 32}, 0, ""); },
            Code::kCorruption, "\"c\": the number of elements overflows"},
        Malformed{"size_overflow",
                  [](GgufWriter& w) { w.AddTensor("c", {int64_t{1} << 62}, 0, ""); },
                  Code::kCorruption, "\"c\": its size overflows"},
        Malformed{"past_the_end",
                  [](GgufWriter& w) { w.AddTensor("c", {int64_t{1} << 40}, 0, ""); },
                  Code::kCorruption, "truncated: tensor \"c\" needs 4398046511104 bytes"},
        Malformed{"unknown_tensor_type", [](GgufWriter& w) { w.AddTensor("c", {32}, 777, ""); },
                  Code::kUnsupported, "\"c\" is stored as type 777 (unknown)"},
        Malformed{"refused_tensor_type", [](GgufWriter& w) { w.AddTensor("c", {256}, 10, ""); },
                  Code::kUnsupported, "type 10 (Q2_K); supported: F32"},
        Malformed{"partial_block",
                  [](GgufWriter& w) { w.AddTensor("c", {33}, 8, std::string(68, 0)); },
                  Code::kCorruption, "not a multiple of Q8_0's block of 32"},
        Malformed{"gap", [](GgufWriter& w) { w.AddTensor("c", {1}, 0, std::string(36, 0), 128); },
                  Code::kCorruption, "\"c\" is at data offset 128, expected 96"},
        Malformed{"overlap", [](GgufWriter& w) { w.AddTensor("c", {1}, 0, std::string(4, 0), 0); },
                  Code::kCorruption, "\"c\" is at data offset 0, expected 96"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(GgufFile, HonoursAlignment) {
  GgufWriter writer;
  writer.alignment = 64;
  writer.AddU32("general.alignment", 64);
  writer.AddTensor("a", {1}, 0, std::string(4, 1));
  writer.AddTensor("b", {1}, 0, std::string(4, 2));
  const std::string bytes = writer.Build();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file) << file.error().message();
  const auto data = [&](const char* name) {
    return (*file)->FindTensor(name)->bytes.data() -
           reinterpret_cast<const std::byte*>(bytes.data());
  };
  EXPECT_EQ(data("a") % 64, 0);
  EXPECT_EQ(data("b") - data("a"), 64);
}

TEST(GgufFile, OpenNamesAMissingFile) {
  const auto file = GgufFile::Open("/nowhere/model.gguf");
  ASSERT_FALSE(file);
  EXPECT_NE(file.error().message().find("/nowhere/model.gguf"), std::string::npos);
}

}  // namespace
}  // namespace nibble::formats
