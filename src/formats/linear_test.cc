// Linears as producers store them. Values: the dequantised weights that ModelOpt's and
// compressed-tensors' own code makes of the same files (tools/make_formats_goldens.py). Defects:
// every companion missing, of a wrong shape or dtype, and every scale value that is no scale.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/safetensors.h"
#include "testing/golden.h"
#include "testing/tensor_folder.h"

namespace nibble::formats {
namespace {

// --- against the producers ---

std::unique_ptr<Checkpoint> OpenGolden(const std::string& name) {
  auto opened = OpenCheckpoint(GoldenPath("formats/" + name));
  EXPECT_TRUE(opened) << opened.error().message();
  return opened ? std::move(*opened) : nullptr;
}

// expected.safetensors beside a golden checkpoint: module → FP32 rows.
class Expected {
 public:
  explicit Expected(const std::string& name)
      : file_(OpenSafetensors(GoldenPath("formats/" + name + "/expected.safetensors")).value()) {}

  std::vector<std::string> Modules() const {
    std::vector<std::string> names;
    for (const auto& entry : file_->header.tensors) {
      if (!entry.name.ends_with(".rows")) names.push_back(entry.name);
    }
    return names;
  }
  const SafetensorsEntry* Find(const std::string& name) const {
    for (const auto& entry : file_->header.tensors) {
      if (entry.name == name) return &entry;
    }
    return nullptr;
  }
  template <typename T>
  std::vector<T> Values(const std::string& name) const {
    const SafetensorsEntry* entry = Find(name);
    std::vector<T> values(static_cast<size_t>(entry->shape.elements()));
    std::memcpy(values.data(), file_->mapping.bytes().data() + entry->begin,
                values.size() * sizeof(T));
    return values;
  }

 private:
  std::shared_ptr<const SafetensorsFile> file_;
};

// Every module's rows; `ulps` of FP32 allowed (producers order the two products differently).
void CheckAgainstProducer(const std::string& golden, int ulps) {
  const auto checkpoint = OpenGolden(golden);
  ASSERT_NE(checkpoint, nullptr);
  const Expected expected(golden);
  for (const std::string& module : expected.Modules()) {
    const auto linear = checkpoint->ReadLinear(module, 0, 0);
    ASSERT_TRUE(linear) << linear.error().message();
    const auto values = expected.Values<float>(module);
    std::vector<int64_t> rows;
    if (expected.Find(module + ".rows") != nullptr) {
      rows = expected.Values<int64_t>(module + ".rows");
    } else {
      for (int64_t row = 0; row < linear->view.n; ++row) rows.push_back(row);
    }
    const QuantView& view = linear->view;
    const int64_t k = view.k;
    ASSERT_EQ(values.size(), rows.size() * static_cast<size_t>(k)) << module;
    std::vector<float> got(static_cast<size_t>(k));
    for (size_t i = 0; i < rows.size(); ++i) {
      DequantizeRow(linear->view, rows[i], got.data());
      for (int64_t column = 0; column < k; ++column) {
        const int64_t original = view.column_order != nullptr ? view.column_order[column] : column;
        const float want = values[i * static_cast<size_t>(k) + static_cast<size_t>(original)];
        const float allowed = static_cast<float>(ulps) * std::ldexp(std::fabs(want), -23);
        ASSERT_NEAR(got[static_cast<size_t>(column)], want, allowed)
            << module << " [" << rows[i] << ", " << column << "]";
      }
    }
  }
}

TEST(LinearGoldenTest, ModelOptNvfp4IsExact) { CheckAgainstProducer("modelopt_nvfp4", 0); }
TEST(LinearGoldenTest, CompressedTensorsNvfp4) {
  CheckAgainstProducer("compressed_tensors_nvfp4", 3);
}
TEST(LinearGoldenTest, CompressedTensorsOtherFormats) {
  CheckAgainstProducer("compressed_tensors_formats", 3);
}
TEST(LinearGoldenTest, CompressedTensorsIntegersAreExact) {
  CheckAgainstProducer("compressed_tensors_integers", 0);
}
TEST(LinearGoldenTest, ModelOptFormatsAreExact) { CheckAgainstProducer("modelopt_formats", 0); }
TEST(LinearGoldenTest, DeepSeekFp8IsExact) { CheckAgainstProducer("deepseek_fp8", 0); }
TEST(LinearGoldenTest, ShardedBf16IsExact) { CheckAgainstProducer("sharded_bf16", 0); }

TEST(LinearGoldenTest, FormatsShapesAndScalars) {
  const auto modelopt = OpenGolden("modelopt_nvfp4");
  const std::string up = "model.layers.0.mlp.up_proj";
  const auto linear = modelopt->ReadLinear(up, 48, 32);
  ASSERT_TRUE(linear) << linear.error().message();
  EXPECT_EQ(linear->view.format, WeightFormat::kNvfp4);
  EXPECT_FLOAT_EQ(linear->view.input_scale, 0.0013137090718373656f);
  EXPECT_EQ(modelopt->LinearTensors(up),
            (std::vector<std::string>{up + ".weight", up + ".weight_scale", up + ".weight_scale_2",
                                      up + ".input_scale"}));
  EXPECT_EQ(*modelopt->LinearFormat("lm_head"), WeightFormat::kBf16);
  EXPECT_EQ(modelopt->LinearTensors("lm_head"), std::vector<std::string>{"lm_head.weight"});

  const auto compressed = OpenGolden("compressed_tensors_nvfp4");
  const auto divided = compressed->ReadLinear(up, 48, 32);
  ASSERT_TRUE(divided) << divided.error().message();
  EXPECT_FLOAT_EQ(divided->view.global_scale, 1.0f / 39042.72265625f);
  EXPECT_FLOAT_EQ(divided->view.input_scale, 1.0f / 768.0000610351562f);
  EXPECT_EQ(compressed->LinearTensors(up).size(), 4u);

  const auto formats = OpenGolden("compressed_tensors_formats");
  const std::map<std::string, WeightFormat> expected = {
      {"nvfp4a16", WeightFormat::kNvfp4}, {"mxfp4a16", WeightFormat::kMxfp4},
      {"fp8", WeightFormat::kFp8},        {"fp8_dynamic", WeightFormat::kFp8},
      {"fp8_block", WeightFormat::kFp8},  {"mxfp8a16", WeightFormat::kFp8},
      {"bf16", WeightFormat::kBf16},      {"f16", WeightFormat::kF16},
      {"f32", WeightFormat::kF32}};
  for (const auto& [module, format] : expected) {
    const auto found = formats->LinearFormat(module);
    ASSERT_TRUE(found) << found.error().message();
    EXPECT_EQ(*found, format) << module;
  }
  EXPECT_EQ(formats->ReadLinear("fp8_block", 0, 0)->view.scale_block_k, 128);
  EXPECT_EQ(formats->ReadLinear("mxfp8a16", 0, 0)->view.scale_block_k, 32);
  EXPECT_EQ(formats->ReadLinear("fp8", 0, 0)->view.input_scale, 0.0078125f);
}

TEST(LinearGoldenTest, FormatsOfModelOpt) {
  const auto checkpoint = OpenGolden("modelopt_formats");
  const std::map<std::string, WeightFormat> expected = {
      {"nvfp4", WeightFormat::kNvfp4},
      {"w4a16_nvfp4", WeightFormat::kNvfp4},
      {"fp8", WeightFormat::kFp8},
      {"fp8_per_channel_per_token", WeightFormat::kFp8},
      {"fp8_2d_blockwise_weight_only", WeightFormat::kFp8},
      {"int4_awq", WeightFormat::kInt4},
      {"int4_blockwise_weight_only", WeightFormat::kInt4},
      {"w4a8_awq_beta", WeightFormat::kInt4},
      {"int8_weight_only", WeightFormat::kInt8},
      {"int8_smoothquant", WeightFormat::kInt8},
      {"mxfp4", WeightFormat::kMxfp4},
      {"mxfp8", WeightFormat::kFp8},
      {"mixed", WeightFormat::kFp8}};
  for (const auto& [module, format] : expected) {
    const auto found = checkpoint->LinearFormat(module + ".k_proj");
    ASSERT_TRUE(found) << found.error().message();
    EXPECT_EQ(*found, format) << module;
  }
  const auto read = [&](const char* module) {
    return checkpoint->ReadLinear(fmt::format("{}.k_proj", module), 16, 128)->view;
  };
  EXPECT_GT(read("nvfp4").input_scale, 0);
  EXPECT_EQ(read("w4a16_nvfp4").input_scale, 0);
  EXPECT_EQ(read("mxfp8").scale_block_k, 32);
  EXPECT_EQ(read("int4_awq").scale_block_k, 128);
  EXPECT_EQ(read("int4_awq").zeros, nullptr);
  EXPECT_NE(read("int8_smoothquant").input_multiplier, nullptr);
}

TEST(LinearGoldenTest, ExpertsAreExact) {
  const auto checkpoint = OpenGolden("experts");
  ASSERT_NE(checkpoint, nullptr);
  const Expected expected("experts");
  constexpr int64_t kD = 64;
  constexpr int64_t kF = 16;
  for (const std::string& name : expected.Modules()) {  // "llama4_fp8.experts.1.up_proj"
    const size_t at = name.find(".1.");
    const std::string module = name.substr(0, at);
    const std::string projection = name.substr(at + 3);
    const bool blocks = module.starts_with("gpt_oss_mxfp4");  // F = 32 there
    const int64_t f = blocks ? 2 * kF : kF;
    const int64_t n = projection == "down_proj" ? kD : f;
    const int64_t k = projection == "down_proj" ? f : kD;
    const bool gpt_oss = module.starts_with("gpt_oss");
    const auto read = checkpoint->ReadExpert(module, 1, projection, n, k,
                                             {.interleaved = gpt_oss, .transposed = {}});
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_EQ(DequantizeAll(read->view), expected.Values<float>(name)) << name;
    const auto bias = checkpoint->ReadExpertBias(module, 1, projection, n, {});
    ASSERT_TRUE(bias) << bias.error().message();
    EXPECT_EQ(bias->empty(), !gpt_oss || blocks) << name;
  }
  EXPECT_EQ(expected.Modules().size(), 42u);
}

// --- defects ---

// Below "p.".
using Tensors = StoredTensors;

class LinearTest : public ::testing::Test {
 protected:
  std::unique_ptr<Checkpoint> Open(const Tensors& tensors, const std::string& config = "{}") {
    Tensors prefixed;
    for (const auto& [name, tensor] : tensors) prefixed["p." + name] = tensor;
    return folder_.Open(prefixed, config);
  }

  // What ReadLinear says, the folder's path cut off; "" if it reads.
  std::string ErrorOf(const Tensors& tensors, int64_t n = 0, int64_t k = 0) {
    const auto checkpoint = Open(tensors);
    const auto linear = checkpoint->ReadLinear("p", n, k);
    return linear ? "" : folder_.Shorten(linear.error().message());
  }

  // (2, 32), block scales 1.0, codes 0x11.
  static Tensors ModelOpt() {
    return {{"weight", {DType::kU8, {2, 16}, std::vector<uint8_t>(32, 0x11)}},
            {"weight_scale", {DType::kF8E4M3, {2, 2}, std::vector<uint8_t>(4, 0x38)}},
            {"weight_scale_2", {DType::kF32, {}, FloatBytes({0.5f})}}};
  }
  static Tensors CompressedTensors() {
    return {{"weight_packed", {DType::kU8, {2, 16}, std::vector<uint8_t>(32, 0x11)}},
            {"weight_scale", {DType::kF8E4M3, {2, 2}, std::vector<uint8_t>(4, 0x38)}},
            {"weight_global_scale", {DType::kF32, {1}, FloatBytes({4.0f})}}};
  }
  static Tensors Fp8(Shape scale_shape, DType scale_dtype = DType::kF32) {
    return {{"weight", {DType::kF8E4M3, {200, 160}, {}}},
            {"weight_scale_inv", {scale_dtype, scale_shape, {}}}};
  }

  TensorFolder folder_;
};

TEST_F(LinearTest, BothConventionsOfTheGlobalScale) {
  const auto modelopt = Open(ModelOpt())->ReadLinear("p", 2, 32);
  ASSERT_TRUE(modelopt) << modelopt.error().message();
  EXPECT_EQ(modelopt->view.global_scale, 0.5f);
  EXPECT_EQ(DequantizeElement(modelopt->view, 1, 31), 0.25f);  // code 1 is 0.5
  const auto compressed = Open(CompressedTensors())->ReadLinear("p", 2, 32);
  ASSERT_TRUE(compressed) << compressed.error().message();
  EXPECT_EQ(compressed->view.global_scale, 0.25f);
  EXPECT_EQ(compressed->view.input_scale, 0.0f) << "absent";
}

TEST_F(LinearTest, AnInvertedGlobalScaleIsReportedAndKept) {
  Tensors tensors = ModelOpt();
  tensors["weight_scale_2"].bytes = FloatBytes({35288.6f});
  ::testing::internal::CaptureStderr();
  const auto checkpoint = Open(tensors);
  EXPECT_EQ(checkpoint->ReadLinear("p", 0, 0)->view.global_scale, 35288.6f);
  EXPECT_EQ(checkpoint->ReadLinear("p", 0, 0)->view.global_scale, 35288.6f);
  const std::string log = ::testing::internal::GetCapturedStderr();
  const size_t at = log.find("\"p.weight_scale_2\": the multiplier 35288.6 is outside");
  ASSERT_NE(at, std::string::npos) << log;
  EXPECT_EQ(log.find("is outside", at + 60), std::string::npos) << "once per checkpoint";
}

TEST_F(LinearTest, MissingCompanionsAreNamed) {
  Tensors tensors = ModelOpt();
  tensors.erase("weight_scale_2");
  EXPECT_EQ(ErrorOf(tensors), "tensor \"p.weight\": U8 needs p.weight_scale_2, which is missing");
  tensors.erase("weight_scale");
  EXPECT_EQ(ErrorOf(tensors), "tensor \"p.weight\": U8 needs p.weight_scale, which is missing");
  tensors = CompressedTensors();
  tensors.erase("weight_global_scale");
  EXPECT_EQ(ErrorOf(tensors),
            "tensor \"p.weight_packed\": U8 needs p.weight_global_scale, which is missing");
  tensors.erase("weight_packed");
  EXPECT_EQ(ErrorOf(tensors), "no tensor p.weight, weight_packed or qweight");
  EXPECT_EQ(ErrorOf({{"weight", {DType::kF8E4M3, {2, 2}, {}}}}),
            "tensor \"p.weight\": F8_E4M3 needs p.weight_scale or weight_scale_inv, which is "
            "missing");
}

TEST_F(LinearTest, ShapesAndTypesThatCannotFit) {
  Tensors tensors = ModelOpt();
  EXPECT_EQ(ErrorOf(tensors, 2, 64),
            "tensor \"p.weight\": U8 [2, 16] is a nvfp4 linear with N = 2, K = 32; the "
            "architecture needs N = 2, K = 64");
  EXPECT_NE(ErrorOf(tensors, 3, 32), "");
  tensors["weight_scale"].shape = {2, 4};
  EXPECT_EQ(
      ErrorOf(tensors),
      "tensor \"p.weight_scale\": F8_E4M3 [2, 4], expected [2, 2] beside \"p.weight\" [2, 16]");
  tensors = ModelOpt();
  tensors["weight"].shape = {2, 12};
  EXPECT_EQ(ErrorOf(tensors),
            "tensor \"p.weight\": U8 [2, 12], expected 12 bytes per row to be a multiple of 8: K = "
            "24 must be one of 16 for nvfp4");
  tensors = ModelOpt();
  tensors["weight_scale_2"] = {DType::kF32, {2}, FloatBytes({1, 1})};
  EXPECT_EQ(ErrorOf(tensors),
            "tensor \"p.weight_scale_2\": F32 [2], expected a F32 scalar, [] or [1]");
  tensors = ModelOpt();
  tensors["weight_scale"].dtype = DType::kI8;
  EXPECT_EQ(ErrorOf(tensors), "tensor \"p.weight_scale\": I8 [2, 2], expected F8_E4M3");
  tensors = ModelOpt();
  tensors["weight"].shape = {32};
  EXPECT_NE(ErrorOf(tensors).find("expected a matrix"), std::string::npos);
  tensors = ModelOpt();
  tensors["weight_packed"] = tensors["weight"];
  EXPECT_NE(ErrorOf(tensors).find("has both weight and weight_packed"), std::string::npos);
  EXPECT_NE(ErrorOf({{"weight", {DType::kBF16, {0, 4}, {}}}}).find("at least one element"),
            std::string::npos);
}

TEST_F(LinearTest, FormatsThatAreNotReadAreRefusedByName) {
  Tensors tensors = ModelOpt();
  tensors["svdquant_lora_a"] = {DType::kBF16, {4, 32}, {}};
  EXPECT_NE(ErrorOf(tensors).find("\"p.svdquant_lora_a\": NVFP4_SVD"), std::string::npos);
  EXPECT_NE(ErrorOf({{"weight", {DType::kF64, {2, 2}, {}}}}).find("F64 [2, 2], expected U8"),
            std::string::npos);
}

TEST_F(LinearTest, PreQuantScaleMultipliesTheInput) {
  Tensors tensors = ModelOpt();
  std::vector<float> scales(32, 1.0f);
  scales[5] = 0.25f;
  tensors["pre_quant_scale"] = {DType::kF32, {32}, BytesOf(scales)};
  const auto linear = Open(tensors)->ReadLinear("p", 2, 32);
  ASSERT_TRUE(linear) << linear.error().message();
  ASSERT_NE(linear->view.input_multiplier, nullptr);
  EXPECT_EQ(linear->view.input_multiplier[5], 0.25f);
  EXPECT_EQ(linear->view.input_multiplier[6], 1.0f);
  EXPECT_EQ(DequantizeElement(linear->view, 1, 5), 0.25f) << "weights are as without it";
  EXPECT_EQ(Open(tensors)->LinearTensors("p").back(), "p.pre_quant_scale");
  scales[7] = INFINITY;
  tensors["pre_quant_scale"].bytes = BytesOf(scales);
  EXPECT_EQ(ErrorOf(tensors), "tensor \"p.pre_quant_scale\": element 7 is inf, expected finite");
  tensors["pre_quant_scale"].shape = {16};
  EXPECT_EQ(ErrorOf(tensors),
            "tensor \"p.pre_quant_scale\": F32 [16], expected one float for each of the 32 columns "
            "of \"p.weight\"");
}

TEST_F(LinearTest, ScalesThatAreNoScales) {
  Tensors tensors = ModelOpt();
  tensors["weight_scale"].bytes = {0x38, 0x38, 0x38, 0x80};
  EXPECT_EQ(ErrorOf(tensors),
            "tensor \"p.weight_scale\": element [1, 1] is 0x80 (its sign bit is set), expected a "
            "positive E4M3 number, 0x00 to 0x7E");
  tensors["weight_scale"].bytes = {0x38, 0x7F, 0x38, 0x38};
  EXPECT_NE(ErrorOf(tensors).find("[0, 1] is 0x7F (NaN, over codes that are not zero)"),
            std::string::npos);
  EXPECT_TRUE(Open(tensors)->ReadLinear("p", 0, 0, LinearBytes::kUnchecked));
  for (const float bad : {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    tensors = ModelOpt();
    tensors["weight_scale_2"].bytes = FloatBytes({bad});
    EXPECT_NE(ErrorOf(tensors).find("expected finite and > 0"), std::string::npos) << bad;
    tensors = CompressedTensors();
    tensors["weight_global_scale"].bytes = FloatBytes({bad});
    EXPECT_NE(ErrorOf(tensors).find("(a divisor), expected finite and > 0"), std::string::npos)
        << bad;
    tensors = ModelOpt();
    tensors["input_scale"] = {DType::kF32, {}, FloatBytes({bad})};
    EXPECT_EQ(ErrorOf(tensors) == "", bad == 0.0f) << bad;
  }
}

TEST_F(LinearTest, NanScalesOfZeroBlocksAreZero) {
  Tensors tensors = ModelOpt();
  auto& codes = tensors["weight"].bytes;
  for (size_t i = 8; i < 16; ++i) codes[i] = 0x80;  // block [0, 1]: 0 and -0
  tensors["weight_scale"].bytes = {0x38, 0x7F, 0x38, 0x38};
  const auto linear = Open(tensors)->ReadLinear("p", 0, 0);
  ASSERT_TRUE(linear) << linear.error().message();
  EXPECT_EQ(DequantizeElement(linear->view, 0, 17), 0.0f);
  EXPECT_EQ(DequantizeElement(linear->view, 1, 17), 0.25f);
}

TEST_F(LinearTest, AllZeroTensorsMayHaveAnyGlobalScale) {
  for (const float bad : {0.0f, std::numeric_limits<float>::quiet_NaN()}) {
    Tensors tensors = ModelOpt();
    tensors["weight"].bytes.assign(32, 0x08);
    tensors["weight_scale"].bytes.assign(4, 0x7F);
    tensors["weight_scale_2"].bytes = FloatBytes({bad});
    const auto linear = Open(tensors)->ReadLinear("p", 0, 0);
    ASSERT_TRUE(linear) << linear.error().message();
    EXPECT_EQ(DequantizeElement(linear->view, 1, 5), 0.0f);
  }
}

TEST_F(LinearTest, Mxfp4InBothSpellings) {
  Tensors tensors = {{"weight_packed", {DType::kU8, {2, 32}, std::vector<uint8_t>(64, 0x22)}},
                     {"weight_scale", {DType::kU8, {2, 2}, {127, 128, 127, 254}}}};
  const auto linear = Open(tensors)->ReadLinear("p", 2, 64);
  ASSERT_TRUE(linear) << linear.error().message();
  EXPECT_EQ(linear->view.format, WeightFormat::kMxfp4);
  EXPECT_EQ(DequantizeElement(linear->view, 0, 32), 2.0f);
  tensors["weight_scale"].dtype = DType::kF8E8M0;
  EXPECT_EQ(ErrorOf(tensors), "");
  tensors["weight_scale"].bytes = {127, 128, 255, 127};
  EXPECT_NE(ErrorOf(tensors).find("element [1, 0] is 0xFF (NaN)"), std::string::npos);
  tensors["weight_scale"].shape = {2, 1};
  EXPECT_NE(ErrorOf(tensors).find("expected [2, 2]"), std::string::npos);
  tensors = {{"weight", {DType::kU8, {2, 32}, {}}}, {"weight_scale", {DType::kU8, {2, 2}, {}}}};
  EXPECT_EQ(*Open(tensors)->LinearFormat("p"), WeightFormat::kMxfp4);
  tensors = {{"weight", {DType::kI8, {2, 32}, {}}}, {"scale", {DType::kF8E8M0, {2, 2}, {}}}};
  EXPECT_EQ(*Open(tensors)->LinearFormat("p"), WeightFormat::kMxfp4) << "DeepSeek's experts";
}

TEST_F(LinearTest, Fp8Granularities) {
  struct Case {
    Shape shape;
    int64_t block_n;
    int64_t block_k;
  };
  for (const Case& test :
       {Case{{}, 200, 160}, Case{{1}, 200, 160}, Case{{200}, 1, 160}, Case{{200, 1}, 1, 160},
        Case{{2, 2}, 128, 128}, Case{{2, 1, 2, 1}, 128, 128}, Case{{200, 2}, 1, 128}}) {
    const auto linear = Open(Fp8(test.shape))->ReadLinear("p", 200, 160);
    ASSERT_TRUE(linear) << linear.error().message();
    EXPECT_EQ(linear->view.scale_block_n, test.block_n) << test.shape.ToString();
    EXPECT_EQ(linear->view.scale_block_k, test.block_k) << test.shape.ToString();
  }
  EXPECT_NE(ErrorOf(Fp8({3, 2})).find("one scale per block of 128×128, [2, 2]"), std::string::npos);
  for (const char* config :
       {R"({"quantization_config": {"weight_block_size": [64, 32]}})",
        R"({"text_config": {"quantization_config": {"config_groups": {"group_0":
            {"weights": {"block_structure": "64x32"}}}}}})"}) {
    const auto linear = Open(Fp8({4, 5}), config)->ReadLinear("p", 0, 0);
    ASSERT_TRUE(linear) << linear.error().message();
    EXPECT_EQ(linear->view.scale_block_n, 64);
    EXPECT_EQ(linear->view.scale_block_k, 32);
  }
}

TEST_F(LinearTest, Fp8ScaleValues) {
  Tensors tensors = Fp8({2, 2});
  tensors["weight_scale_inv"].bytes = FloatBytes({1, 0, 2, -1});
  EXPECT_NE(ErrorOf(tensors).find(
                "\"p.weight_scale_inv\": element [1, 1] is -1, expected finite and not negative"),
            std::string::npos)
      << ErrorOf(tensors);
  tensors["weight_scale_inv"].bytes = FloatBytes({1, 0, 2, 3});
  EXPECT_EQ(ErrorOf(tensors), "");
  tensors = Fp8({2, 2}, DType::kF8E8M0);
  tensors["weight_scale_inv"].bytes = {127, 127, 0xFF, 127};
  EXPECT_NE(ErrorOf(tensors).find("element [1, 0]"), std::string::npos);
  tensors["weight_scale"] = tensors["weight_scale_inv"];
  EXPECT_NE(ErrorOf(tensors).find("both weight_scale and weight_scale_inv"), std::string::npos);
}

}  // namespace
}  // namespace nibble::formats
