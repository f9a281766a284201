// Folders as published: which files are read, which tensors are found, what refuses to open.
#include "formats/hf_checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "formats/checkpoint.h"
#include "formats/safetensors_writer.h"
#include "testing/temp_folder.h"

namespace nibble::formats {
namespace {

// One BF16 vector per name, filled with `byte`.
void WriteVectors(const std::string& path, const std::vector<std::string>& names, int byte = 0) {
  std::vector<TensorSpec> specs;
  for (const std::string& name : names) specs.push_back({name, DType::kBF16, {4}});
  auto writer = SafetensorsWriter::Create(path, specs);
  ASSERT_TRUE(writer) << writer.error().message();
  const std::vector<std::byte> bytes(8, std::byte(byte));
  for (const std::string& name : names) ASSERT_TRUE(writer->Write(name, bytes));
  const auto status = writer->Finish();
  ASSERT_TRUE(status) << status.error().message();
}

class HfFolderTest : public ::testing::Test {
 protected:
  void SetUp() override { folder_.Write("config.json", R"({"model_type": "llama"})"); }

  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }

  std::string OpenError() const {
    const auto opened = OpenCheckpoint(folder_.path());
    return opened ? "" : opened.error().message();
  }

  TempFolder folder_;
};

TEST_F(HfFolderTest, ReadsASingleFile) {
  WriteVectors(Path("model.safetensors"), {"b", "a"}, 0x3F);
  const auto opened = OpenCheckpoint(folder_.path());
  ASSERT_TRUE(opened) << opened.error().message();
  const Checkpoint& checkpoint = **opened;
  ASSERT_EQ(checkpoint.tensors().size(), 2u);
  EXPECT_EQ(checkpoint.tensors()[0].name, "a");
  EXPECT_EQ(checkpoint.tensors()[0].stored_as, "BF16");
  EXPECT_EQ(checkpoint.tensors()[0].stored_bytes, 8);
  const auto data = checkpoint.Read("b");
  ASSERT_TRUE(data);
  EXPECT_EQ(data->view.bytes(), 8);
  EXPECT_EQ(std::to_integer<int>(data->view.data[7]), 0x3F);
  EXPECT_EQ(checkpoint.Read("c").error().code(), Code::kNotFound);
  EXPECT_EQ(checkpoint.config().at("model_type"), "llama");
  EXPECT_EQ(*checkpoint.ReadText("config.json"), R"({"model_type": "llama"})");
  EXPECT_EQ(checkpoint.ReadText("tokenizer.json").error().code(), Code::kNotFound);
  EXPECT_EQ(checkpoint.ReadText("../config.json").error().code(), Code::kInvalidArgument);
}

TEST_F(HfFolderTest, BytesOutliveTheCheckpoint) {
  WriteVectors(Path("model.safetensors"), {"a"}, 7);
  auto opened = OpenCheckpoint(folder_.path());
  ASSERT_TRUE(opened);
  const auto data = (*opened)->Read("a");
  opened->reset();
  EXPECT_EQ(std::to_integer<int>(data->view.data[0]), 7);
}

TEST_F(HfFolderTest, IndexComesBeforeSingleFileAndListing) {
  WriteVectors(Path("model.safetensors"), {"old"});
  WriteVectors(Path("part-1.safetensors"), {"a"});
  WriteVectors(Path("extra.safetensors"), {"stray"});
  folder_.Write("model.safetensors.index.json", R"({"weight_map": {"a": "part-1.safetensors"}})");
  const auto opened = OpenCheckpoint(folder_.path());
  ASSERT_TRUE(opened) << opened.error().message();
  EXPECT_NE((*opened)->Find("a"), nullptr);
  EXPECT_EQ((*opened)->Find("old"), nullptr);
  EXPECT_EQ((*opened)->Find("stray"), nullptr);
}

TEST_F(HfFolderTest, WithoutIndexEveryFileCountsExceptDuplicateSets) {
  WriteVectors(Path("one.safetensors"), {"a"});
  WriteVectors(Path("two.safetensors"), {"b"});
  WriteVectors(Path("consolidated.safetensors"), {"c"});
  WriteVectors(Path("adapter_model.safetensors"), {"d"});
  const auto opened = OpenCheckpoint(folder_.path());
  ASSERT_TRUE(opened) << opened.error().message();
  ASSERT_EQ((*opened)->tensors().size(), 2u);
}

TEST_F(HfFolderTest, ShardHeadersAreTheTruth) {
  // "unlisted" is in a shard but not in the index; "ghost" the other way round; "twice" is in both
  // shards and the index chooses the second.
  WriteVectors(Path("1.safetensors"), {"a", "unlisted", "twice"}, 1);
  WriteVectors(Path("2.safetensors"), {"b", "twice"}, 2);
  folder_.Write("model.safetensors.index.json",
                R"({"metadata": {"total_size": 1}, "weight_map": {"a": "1.safetensors",
                    "b": "2.safetensors", "twice": "2.safetensors", "ghost": "1.safetensors"}})");
  const auto opened = OpenCheckpoint(folder_.path());
  ASSERT_TRUE(opened) << opened.error().message();
  EXPECT_NE((*opened)->Find("unlisted"), nullptr);
  EXPECT_EQ((*opened)->Find("ghost"), nullptr);
  EXPECT_EQ(std::to_integer<int>((*opened)->Read("twice")->view.data[0]), 2);
}

TEST_F(HfFolderTest, ANameInTwoFilesNeedsAnIndex) {
  WriteVectors(Path("1.safetensors"), {"a"});
  WriteVectors(Path("2.safetensors"), {"a"});
  EXPECT_NE(OpenError().find("\"a\" is in 1.safetensors and in 2.safetensors"), std::string::npos)
      << OpenError();
}

TEST_F(HfFolderTest, WrapperPrefixesAreSeenThrough) {
  WriteVectors(Path("model.safetensors"), {"model.language_model.layers.0.mlp.up_proj.weight",
                                           "lm_head.weight", "model.visual.patch.weight"});
  const auto opened = OpenCheckpoint(folder_.path());
  ASSERT_TRUE(opened);
  for (const char* name :
       {"model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight",
        "language_model.model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"}) {
    const TensorEntry* entry = (*opened)->Find(name);
    ASSERT_NE(entry, nullptr) << name;
    EXPECT_EQ(entry->name, "model.language_model.layers.0.mlp.up_proj.weight");
  }
  EXPECT_EQ((*opened)->Find("model.patch.weight"), nullptr);
}

TEST_F(HfFolderTest, AWrapperNameThatTwoTensorsAnswerToIsAbsent) {
  WriteVectors(Path("model.safetensors"),
               {"model.language_model.norm.weight", "language_model.model.norm.weight"});
  const auto opened = OpenCheckpoint(folder_.path());
  ASSERT_TRUE(opened);
  EXPECT_EQ((*opened)->Find("model.norm.weight"), nullptr);
  EXPECT_NE((*opened)->Find("language_model.model.norm.weight"), nullptr);
}

TEST_F(HfFolderTest, ErrorsNameFileAndReason) {
  EXPECT_NE(OpenError().find("no model.safetensors.index.json, model.safetensors"),
            std::string::npos);
  folder_.Write("pytorch_model.bin", "");
  EXPECT_NE(OpenError().find(".bin and .pt files are not read"), std::string::npos);
  folder_.Write("model.safetensors.index.json", R"({"weight_map": {"a": "1.safetensors"}})");
  EXPECT_NE(OpenError().find("\"1.safetensors\", which is not in the folder"), std::string::npos);
  folder_.Write("model.safetensors.index.json", R"({"metadata": {}})");
  EXPECT_NE(OpenError().find("index.json: no object \"weight_map\""), std::string::npos);
  folder_.Write("model.safetensors.index.json", R"({"weight_map": {"a": 3}})");
  EXPECT_NE(OpenError().find("weight_map entry \"a\" is not a file name"), std::string::npos);
  folder_.Write("config.json", "{\"a\": 1,\n \"b\" 2}");
  EXPECT_NE(OpenError().find("config.json: not valid JSON at line 2, column 6"), std::string::npos)
      << OpenError();
  std::filesystem::remove(Path("config.json"));
  EXPECT_NE(OpenError().find("no config.json; give a folder"), std::string::npos);
  EXPECT_EQ(OpenCheckpoint(Path("nowhere")).error().code(), Code::kNotFound);
  EXPECT_EQ(OpenCheckpoint(Path("pytorch_model.bin")).error().code(), Code::kInvalidArgument);
}

TEST(ShardNameTest, OnlyNamesBelowTheFolder) {
  const std::string nul("a\0.safetensors", 14);
  for (const std::string& name :
       {std::string(), std::string("/etc/a.safetensors"), std::string("../a.safetensors"),
        std::string("a/../../b.safetensors"), std::string("a\\b.safetensors"), nul,
        std::string("weights.bin"), std::string(2000, 'a') + ".safetensors"}) {
    EXPECT_FALSE(CheckShardName(name, "index")) << name;
  }
  for (const char* name : {"a.safetensors", "sub/a.safetensors", "a..b.safetensors"}) {
    EXPECT_TRUE(CheckShardName(name, "index")) << name;
  }
}

TEST_F(HfFolderTest, StopTokens) {
  WriteVectors(Path("model.safetensors"), {"a"});
  const auto stop = [this] { return StopTokenIds(**OpenCheckpoint(folder_.path())); };
  EXPECT_EQ(stop(), std::vector<int32_t>{});
  folder_.Write("config.json", R"({"text_config": {"eos_token_id": 7}})");
  EXPECT_EQ(stop(), std::vector<int32_t>{7});
  folder_.Write("config.json", R"({"eos_token_id": [5, -1, "x", 99999999999, 6]})");
  EXPECT_EQ(stop(), (std::vector<int32_t>{5, 6}));
  folder_.Write("generation_config.json", R"({"temperature": 0.6})");
  EXPECT_EQ(stop(), (std::vector<int32_t>{5, 6}));
  folder_.Write("generation_config.json", R"({"eos_token_id": 2})");
  EXPECT_EQ(stop(), std::vector<int32_t>{2});
}

}  // namespace
}  // namespace nibble::formats
