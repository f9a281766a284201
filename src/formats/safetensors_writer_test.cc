// The writer's files: equal to the reference writer's, readable, sharded, and never half-written
// under their name.
#include "formats/safetensors_writer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "formats/checkpoint.h"
#include "formats/safetensors.h"
#include "testing/golden.h"
#include "testing/temp_folder.h"

namespace nibble::formats {
namespace {

std::vector<std::byte> Filled(size_t count, int value) {
  return std::vector<std::byte>(count, std::byte(value));
}

int FilesIn(const std::string& folder) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    count += entry.is_regular_file() ? 1 : 0;
  }
  return count;
}

TEST(SafetensorsWriterTest, SortsByElementSizeThenNameAndAlignsTheData) {
  TempFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  const std::vector<TensorSpec> specs = {{"codes", DType::kU8, {3}},
                                         {"b", DType::kBF16, {2, 2}},
                                         {"a \"quoted\" é", DType::kBF16, {1}},
                                         {"scale", DType::kF32, {}},
                                         {"empty", DType::kF32, {0, 5}}};
  auto writer = SafetensorsWriter::Create(path, specs, {{"format", "pt"}});
  ASSERT_TRUE(writer) << writer.error().message();
  ASSERT_TRUE(writer->Write("codes", Filled(3, 1)));  // in any order
  ASSERT_TRUE(writer->Write("scale", Filled(4, 2)));
  ASSERT_TRUE(writer->Write("b", Filled(8, 3)));
  ASSERT_TRUE(writer->Write("a \"quoted\" é", Filled(2, 4)));
  EXPECT_FALSE(FileExists(path));
  ASSERT_TRUE(writer->Write("empty", {}));
  const auto finished = writer->Finish();
  ASSERT_TRUE(finished) << finished.error().message();

  const auto file = OpenSafetensors(path);
  ASSERT_TRUE(file) << file.error().message();
  const auto& tensors = (*file)->header.tensors;
  std::vector<std::string> names;
  for (const auto& tensor : tensors) names.push_back(tensor.name);
  EXPECT_EQ(names, (std::vector<std::string>{"empty", "scale", "a \"quoted\" é", "b", "codes"}));
  EXPECT_EQ(tensors.front().begin % 8, 0);
  EXPECT_EQ(tensors[0].shape, (Shape{0, 5}));
  EXPECT_EQ(tensors[1].shape, Shape{});
  EXPECT_EQ((*file)->header.metadata,
            (std::vector<std::pair<std::string, std::string>>{{"format", "pt"}}));
  const auto bytes = (*file)->mapping.bytes();
  for (const auto& [index, value] : {std::pair{1, 2}, {2, 4}, {3, 3}, {4, 1}}) {
    for (int64_t i = tensors[index].begin; i < tensors[index].end; ++i) {
      EXPECT_EQ(std::to_integer<int>(bytes[i]), value) << tensors[index].name;
    }
  }
  EXPECT_EQ(FilesIn(folder.path()), 1);
}

// What a killed process leaves must not pass for a checkpoint, not even under another name.
TEST(SafetensorsWriterTest, NoFileIsValidBeforeFinish) {
  TempFolder folder;
  const std::vector<TensorSpec> specs = {{"a", DType::kU8, {64}}, {"b", DType::kU8, {64}}};
  auto writer = ShardedWriter::Create(folder.path(), specs, 64);
  ASSERT_TRUE(writer);
  const auto valid = [&] {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
      count += OpenSafetensors(entry.path().string()).has_value() ? 1 : 0;
    return count;
  };
  ASSERT_TRUE(writer->Write("a", Filled(64, 1)));
  EXPECT_EQ(FilesIn(folder.path()), 1);
  ASSERT_TRUE(writer->Write("b", Filled(64, 2)));
  EXPECT_EQ(FilesIn(folder.path()), 2);
  EXPECT_EQ(valid(), 0);
  ASSERT_TRUE(writer->Finish());
  EXPECT_EQ(valid(), 2);
}

TEST(SafetensorsWriterTest, WritesTheBytesThatTheReferenceWriterWrites) {
  TempFolder folder;
  for (const char* shard : {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                            "model-00003-of-00003.safetensors"}) {
    const std::string golden = GoldenPath("formats/sharded_bf16/") + shard;
    const auto file = OpenSafetensors(golden);
    ASSERT_TRUE(file) << file.error().message();
    std::vector<TensorSpec> specs;
    for (const auto& tensor : (*file)->header.tensors) {
      specs.insert(specs.begin(), {tensor.name, tensor.dtype, tensor.shape});
    }
    const std::string path = folder.path() + "/" + shard;
    auto writer = SafetensorsWriter::Create(path, specs, (*file)->header.metadata);
    ASSERT_TRUE(writer) << writer.error().message();
    for (const auto& tensor : (*file)->header.tensors) {
      ASSERT_TRUE(writer->Write(
          tensor.name, (*file)->mapping.bytes().subspan(tensor.begin, tensor.end - tensor.begin)));
    }
    ASSERT_TRUE(writer->Finish());
    EXPECT_TRUE(*ReadFile(path) == *ReadFile(golden)) << shard;
  }
}

TEST(SafetensorsWriterTest, RefusesWhatWouldNotBeAFile) {
  TempFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  const auto create_error = [&](std::vector<TensorSpec> specs) {
    const auto writer = SafetensorsWriter::Create(path, specs);
    return writer ? std::string() : writer.error().message();
  };
  EXPECT_NE(create_error({{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}).find("listed twice"),
            std::string::npos);
  EXPECT_NE(
      create_error({{"a", DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}}}).find("overflow"),
      std::string::npos);
  EXPECT_NE(create_error({{"a", DType::kF4, {3}}}).find("not whole bytes"), std::string::npos);
  {
    auto writer = SafetensorsWriter::Create(path, std::vector<TensorSpec>{{"a", DType::kU8, {2}}});
    ASSERT_TRUE(writer);
    EXPECT_NE(writer->Write("b", Filled(2, 0)).error().message().find("not announced"),
              std::string::npos);
    EXPECT_NE(writer->Write("a", Filled(3, 0)).error().message().find("3 bytes given"),
              std::string::npos);
    EXPECT_NE(writer->Finish().error().message().find("1 tensors were not written, \"a\""),
              std::string::npos);
    ASSERT_TRUE(writer->Write("a", Filled(2, 0)));
    EXPECT_NE(writer->Write("a", Filled(2, 0)).error().message().find("written twice"),
              std::string::npos);
  }
  EXPECT_EQ(FilesIn(folder.path()), 0) << "a dropped writer leaves nothing";
}

TEST(ShardedWriterTest, SplitsBySizeAndOpensAgain) {
  TempFolder folder;
  folder.Write("config.json", "{}");
  const std::vector<TensorSpec> specs = {{"a", DType::kU8, {60}},
                                         {"b", DType::kU8, {40}},
                                         {"huge", DType::kU8, {500}},
                                         {"c", DType::kU8, {1}}};
  auto writer = ShardedWriter::Create(folder.path(), specs, 100);
  ASSERT_TRUE(writer) << writer.error().message();
  EXPECT_EQ(writer->FileNames(), (std::vector<std::string>{"model-00001-of-00003.safetensors",
                                                           "model-00002-of-00003.safetensors",
                                                           "model-00003-of-00003.safetensors"}));
  EXPECT_EQ(writer->total_bytes(), 601);
  for (const char* name : {"c", "a", "huge", "b"}) {
    const size_t bytes = name == std::string("huge") ? 500
                         : *name == 'a'              ? 60
                         : *name == 'b'              ? 40
                                                     : 1;
    const auto status = writer->Write(name, Filled(bytes, *name));
    ASSERT_TRUE(status) << status.error().message();
  }
  ASSERT_TRUE(writer->Finish());
  const auto opened = OpenCheckpoint(folder.path());
  ASSERT_TRUE(opened) << opened.error().message();
  ASSERT_EQ((*opened)->tensors().size(), 4u);
  EXPECT_EQ(std::to_integer<char>((*opened)->Read("huge")->view.data[499]), 'h');
  EXPECT_NE((*opened)->ReadText("model.safetensors.index.json")->find("\"total_size\":601"),
            std::string::npos);
}

TEST(ShardedWriterTest, OneShardHasNoIndex) {
  TempFolder folder;
  auto writer =
      ShardedWriter::Create(folder.path(), std::vector<TensorSpec>{{"a", DType::kU8, {1}}}, 100);
  ASSERT_TRUE(writer);
  EXPECT_FALSE(writer->Finish());
  ASSERT_TRUE(writer->Write("a", Filled(1, 0)));
  ASSERT_TRUE(writer->Finish());
  EXPECT_TRUE(FileExists(folder.path() + "/model.safetensors"));
  EXPECT_EQ(FilesIn(folder.path()), 1);
}

}  // namespace
}  // namespace nibble::formats
