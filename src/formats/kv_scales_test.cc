#include "formats/kv_scales.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "formats/safetensors_writer.h"
#include "testing/golden.h"
#include "testing/temp_folder.h"

namespace nibble::formats {
namespace {

TEST(KvScalesTest, AsModelOptExportsThem) {
  const auto checkpoint = OpenCheckpoint(GoldenPath("formats/modelopt_nvfp4"));
  ASSERT_TRUE(checkpoint);
  const auto scales = ReadKvScales(**checkpoint, "model.layers.0.self_attn");
  ASSERT_TRUE(scales) << scales.error().message();
  EXPECT_EQ(scales->k, std::vector<float>{0.0008544921875f});
  EXPECT_EQ(scales->v, std::vector<float>{0.0008283342467620969f});
  EXPECT_EQ(scales->tensors.size(), 2u);
  const auto none = ReadKvScales(**checkpoint, "model.layers.1.self_attn");
  ASSERT_TRUE(none);
  EXPECT_EQ(none->k, std::vector<float>{1.0f});
  EXPECT_TRUE(none->tensors.empty());
}

// FP32 scales under one name.
Result<KvScales> ReadOne(const std::string& name, Shape shape, std::vector<float> values,
                         DType dtype = DType::kF32) {
  TempFolder folder;
  folder.Write("config.json", "{}");
  auto writer = ShardedWriter::Create(
      folder.path(), std::vector<TensorSpec>{{"attn." + name, dtype, shape}}, 1 << 20);
  EXPECT_TRUE(writer && writer->Write("attn." + name, std::as_bytes(std::span(values))));
  EXPECT_TRUE(writer->Finish());
  const auto checkpoint = OpenCheckpoint(folder.path());
  EXPECT_TRUE(checkpoint) << checkpoint.error().message();
  return ReadKvScales(**checkpoint, "attn");
}

TEST(KvScalesTest, OtherSpellings) {
  EXPECT_EQ(ReadOne("k_scale", {2, 1, 1}, {0.5f, 0.25f})->k, (std::vector<float>{0.5f, 0.25f}));
  EXPECT_EQ(ReadOne("attn.v_scale", {1}, {0.5f})->v, std::vector<float>{0.5f});
  const auto both = ReadOne("kv_scale", {}, {0.5f});
  EXPECT_EQ(both->k, both->v);
  EXPECT_EQ(both->tensors, std::vector<std::string>{"attn.kv_scale"});
}

TEST(KvScalesTest, ScalesThatAreNoScales) {
  EXPECT_NE(ReadOne("k_scale", {1}, {0.0f})
                .error()
                .message()
                .find("tensor \"attn.k_scale\": 0, expected finite and > 0"),
            std::string::npos);
  EXPECT_NE(ReadOne("k_scale", {1, 2}, {1, 1}).error().message().find("one per KV head"),
            std::string::npos);
  EXPECT_NE(ReadOne("k_scale", {1}, {1}, DType::kI32).error().message().find("I32 [1], expected"),
            std::string::npos);
  EXPECT_FALSE(ReadOne("k_scale", {0}, {}));
}

}  // namespace
}  // namespace nibble::formats
