// What is stored decides: when flag or config contradict the stored tensors, and when they may.
#include "formats/stored_formats.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "formats/safetensors_writer.h"
#include "testing/golden.h"
#include "testing/temp_folder.h"
#include "testing/tensor_folder.h"

namespace nibble::formats {
namespace {

std::string OpenError(const std::string& folder, const std::string& flag = "") {
  const auto opened = OpenCheckpoint(folder, {.quantization = flag});
  return opened ? "" : opened.error().message();
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// A golden folder's tensors under another config.json.
class WithConfig {
 public:
  WithConfig(const std::string& golden, const std::string& config) {
    for (const auto& file : std::filesystem::directory_iterator(GoldenPath("formats/" + golden))) {
      if (!file.path().filename().string().starts_with("model")) continue;
      std::filesystem::copy(file, folder_.path());
    }
    folder_.Write("config.json", config);
  }
  const std::string& path() const { return folder_.path(); }
  std::string Error(const std::string& flag = "") const { return OpenError(path(), flag); }

 private:
  TempFolder folder_;
};

TEST(StoredFormatsTest, CountsWeightsByFormat) {
  const auto checkpoint = OpenCheckpoint(GoldenPath("formats/modelopt_nvfp4"));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message();
  const auto stored = CountStoredFormats(**checkpoint);
  ASSERT_EQ(stored.size(), 2u);
  EXPECT_EQ(stored[0].kind, "bf16");  // lm_head and the embedding
  EXPECT_EQ(stored[0].weights, 2);
  EXPECT_EQ(stored[0].bytes, 2 * 40 * 32 * 2);
  EXPECT_EQ(stored[1].kind, "nvfp4");
  EXPECT_EQ(stored[1].weights, 7);
  EXPECT_EQ(stored[1].bytes, 7680 * 9 / 16);  // 7,680 weights of 4 bits and a scale byte per 16
  EXPECT_EQ(stored[1].example, "model.layers.0.mlp.down_proj.weight");
}

TEST(StoredFormatsTest, AFlagMustNameAStoredFormat) {
  for (const char* flag : {"nvfp4", "modelopt_fp4", "modelopt"}) {
    EXPECT_EQ(OpenError(GoldenPath("formats/modelopt_nvfp4"), flag), "") << flag;
  }
  EXPECT_EQ(OpenError(GoldenPath("formats/compressed_tensors_nvfp4"), "compressed-tensors"), "");
  EXPECT_EQ(OpenError(GoldenPath("formats/sharded_bf16"), "none"), "");
  EXPECT_EQ(OpenError(GoldenPath("formats/sharded_bf16"), "bf16"), "");

  const std::string integers = GoldenPath("formats/compressed_tensors_integers");
  EXPECT_EQ(OpenError(integers), "");
  EXPECT_EQ(OpenError(integers, "compressed-tensors"), "");
  EXPECT_TRUE(
      Contains(OpenError(integers, "awq"), "6 int (such as \"w4_act_order.weight_packed\")"))
      << "re-releases of AWQ weights in this format are not AWQ files";
  EXPECT_EQ(OpenError(GoldenPath("formats/modelopt_formats"), "mxfp8"), "");
  EXPECT_EQ(OpenError(GoldenPath("formats/experts"), "gpt_oss_mxfp4"), "");

  // The error names flag, config and tensor.
  const std::string fp8 = OpenError(GoldenPath("formats/modelopt_nvfp4"), "fp8");
  EXPECT_TRUE(Contains(fp8, "--quantization fp8: ")) << fp8;
  EXPECT_TRUE(Contains(fp8, "7 nvfp4 (such as \"model.layers.0.mlp.down_proj.weight\")")) << fp8;
  EXPECT_TRUE(Contains(fp8, "config.json says NVFP4")) << fp8;
  EXPECT_TRUE(
      Contains(OpenError(GoldenPath("formats/modelopt_nvfp4"), "bf16"), "--quantization bf16"));
  EXPECT_TRUE(Contains(OpenError(GoldenPath("formats/sharded_bf16"), "nvfp4"),
                       "config.json names no quantization"));
  const std::string unknown = OpenError(GoldenPath("formats/sharded_bf16"), "nvfp5");
  EXPECT_TRUE(Contains(unknown, "--quantization nvfp5: unknown; one of nvfp4, ")) << unknown;
}

TEST(StoredFormatsTest, AConfigMustNotNameAFormatOfWhichNoWeightExists) {
  const WithConfig lying("sharded_bf16",
                         R"({"quantization_config": {"quant_method": "modelopt",
                            "quant_algo": "NVFP4"}})");
  const std::string error = lying.Error();
  EXPECT_TRUE(Contains(error, "config.json names the format NVFP4, but no weight is stored so"))
      << error;
  EXPECT_TRUE(Contains(error, " bf16 (such as \"")) << error;
  const WithConfig other("modelopt_nvfp4", R"({"quantization_config": {"quant_method": "fp8"}})");
  EXPECT_TRUE(Contains(other.Error(), "names the format fp8"));
}

TEST(StoredFormatsTest, WiderWeightsLoadWhateverTheListsSay) {
  // lm_head is BF16 and no list excuses it; the lists are damaged as ModelOpt damaged one.
  for (const char* config : {R"({"quantization_config": {"quant_algo": "nvfp4"}})",
                             R"({"quantization_config": {"quant_algo": "NVFP4", "ignore": null}})",
                             R"({"quantization_config": {"quant_algo": "NVFP4", "exclude_modules":
            ["lm_head.\u0000backbone.pt_name_sentinel", "", 7, "re:(((", "[", "re:(a*)*b"]}})",
                             R"({"quantization_config": {"quant_algo": "NVFP5_FUTURE"}})",
                             R"({"quantization_config": "nvfp4"})", R"({})"}) {
    EXPECT_EQ(WithConfig("modelopt_nvfp4", config).Error(), "") << config;
  }
}

TEST(StoredFormatsTest, HfQuantConfigCountsToo) {
  WithConfig folder("sharded_bf16", "{}");
  EXPECT_EQ(folder.Error(), "");
  ASSERT_TRUE(WriteFileAtomic(folder.path() + "/hf_quant_config.json",
                              R"({"quantization": {"quant_algo": "W4A16_NVFP4"}})"));
  EXPECT_TRUE(Contains(folder.Error(), "hf_quant_config.json names the format W4A16_NVFP4"));
  ASSERT_TRUE(WriteFileAtomic(folder.path() + "/hf_quant_config.json", "{"));
  EXPECT_TRUE(Contains(folder.Error(), "hf_quant_config.json: not valid JSON at line 1"));
}

TEST(StoredFormatsTest, AwqAndGptqAreToldApart) {
  const TensorFolder folder;
  const StoredTensor scales{DType::kF16, {1, 8}, {}};
  StoredTensors awq = {{"a.qweight", {DType::kI32, {8, 1}, {}}},
                       {"a.qzeros", {DType::kI32, {1, 1}, {}}},
                       {"a.scales", scales}};
  folder.Write(awq, R"({"quantization_config": {"quant_method": "awq", "bits": 4}})");
  for (const char* flag : {"", "awq", "awq_marlin", "auto-round"}) {
    EXPECT_EQ(OpenError(folder.path(), flag), "") << flag;
  }
  const std::string gptq = OpenError(folder.path(), "gptq");
  EXPECT_TRUE(Contains(gptq, "--quantization gptq: ")) << gptq;
  EXPECT_TRUE(Contains(gptq, "1 awq (such as \"a.qweight\"); config.json says awq")) << gptq;
  EXPECT_TRUE(Contains(gptq, "drop the flag")) << gptq;
  awq["a.qweight"].shape = {1, 8};
  folder.Write(awq, R"({"quantization_config": {"quant_method": "gptq", "bits": 4}})");
  EXPECT_EQ(OpenError(folder.path(), "gptq_marlin"), "");
  EXPECT_TRUE(Contains(OpenError(folder.path(), "awq"), "1 gptq (such as"));
}

TEST(StoredFormatsTest, GgufFilesAreHeldToTheSameFlag) {
  const std::string path = GoldenPath("gguf/llama.gguf");
  EXPECT_EQ(OpenError(path), "");
  EXPECT_TRUE(Contains(OpenError(path, "nvfp4"), "--quantization nvfp4: " + path));
}

TEST(StoredFormatsTest, ExpertsInOneTensorAreCounted) {
  TempFolder folder;
  folder.Write("config.json", R"({"quantization_config": {"quant_method": "mxfp4"}})");
  const std::vector<TensorSpec> specs = {
      {"model.layers.0.mlp.experts.gate_up_proj_blocks", DType::kU8, {2, 4, 1, 16}},
      {"model.layers.0.mlp.experts.gate_up_proj_scales", DType::kU8, {2, 4, 1}}};
  auto writer = ShardedWriter::Create(folder.path(), specs, 1 << 20);
  ASSERT_TRUE(writer);
  ASSERT_TRUE(writer->Write(specs[0].name, std::vector<std::byte>(128)));
  ASSERT_TRUE(writer->Write(specs[1].name, std::vector<std::byte>(8)));
  ASSERT_TRUE(writer->Finish());
  const auto checkpoint = OpenCheckpoint(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message();
  const auto stored = CountStoredFormats(**checkpoint);
  ASSERT_EQ(stored.size(), 1u);
  EXPECT_EQ(stored[0].kind, "mxfp4");
  EXPECT_EQ(stored[0].bytes, 136);
}

}  // namespace
}  // namespace nibble::formats
