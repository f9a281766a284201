// Whole checkpoints in and out: what readers of the output find, and that nothing half-made is left
// behind. oracle_test.cc holds the comparisons with other producers.
#include "quantize/quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "formats/safetensors.h"
#include "numerics/bf16.h"
#include "numerics/nvfp4.h"
#include "quantize/testing/memory_checkpoint.h"
#include "quantize/testing/written.h"
#include "testing/golden.h"
#include "testing/temp_folder.h"

namespace nibble::quantize {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using formats::Checkpoint;
using formats::OpenCheckpoint;
using formats::TensorData;
using formats::TensorEntry;

MemoryCheckpoint TinyModel() {
  const std::string layer = "model.layers.0.";
  return MemoryCheckpoint({{"model.embed_tokens.weight", {40, 32}},
                           {"model.norm.weight", {32}},
                           {"lm_head.weight", {40, 32}},
                           {layer + "self_attn.q_proj.weight", {32, 32}},
                           {layer + "self_attn.q_proj.bias", {32}},
                           {layer + "self_attn.k_proj.weight", {16, 32}},
                           {layer + "self_attn.v_proj.weight", {16, 32}},
                           {layer + "self_attn.o_proj.weight", {32, 32}},
                           {layer + "mlp.up_proj.weight", {40, 32}},
                           {layer + "mlp.down_proj.weight", {32, 40}}});
}

class QuantizerTest : public testing::Test {
 protected:
  QuantizeOptions Options(Method method = Method::kMse, Layout layout = Layout::kModelOpt) {
    return {.method = method, .layout = layout, .pool = &pool_, .quiet = true};
  }

  std::unique_ptr<Checkpoint> QuantizeAndOpen(const Checkpoint& source,
                                              const QuantizeOptions& options,
                                              QuantizeReport* report = nullptr) {
    auto done = QuantizeCheckpoint(source, destination_, options);
    EXPECT_TRUE(done) << done.error().message();
    if (!done) return nullptr;
    if (report != nullptr) *report = *done;
    auto opened = OpenCheckpoint(destination_);
    EXPECT_TRUE(opened) << opened.error().message();
    return opened ? std::move(*opened) : nullptr;
  }

  json::object ReadJson(const std::string& name) {
    return json::parse(ReadFile(destination_ + "/" + name).value()).as_object();
  }

  std::string ErrorOf(const Checkpoint& source, const QuantizeOptions& options) {
    const auto done = QuantizeCheckpoint(source, destination_, options);
    return done ? "" : done.error().message();
  }

  bool FolderIsEmpty() const { return fs::is_empty(folder_.path()); }

  TempFolder folder_;
  std::string destination_ = folder_.path() + "/out";
  ThreadPool pool_{2};
};

std::vector<std::string> LinearModules(const Checkpoint& checkpoint) {
  std::vector<std::string> modules;
  for (const TensorEntry& entry : checkpoint.tensors()) {
    if (entry.name.ends_with("_proj.weight") || entry.name.ends_with("_proj.weight_packed"))
      modules.push_back(entry.name.substr(0, entry.name.rfind('.')));
  }
  return modules;
}

class QuantizerLayoutTest : public QuantizerTest, public testing::WithParamInterface<Layout> {};

TEST_P(QuantizerLayoutTest, WhatIsWrittenOpensAndMeansTheWeights) {
  const MemoryCheckpoint source = TinyModel();
  for (const Method method : {Method::kMax, Method::kMse}) {
    QuantizeOptions options = Options(method, GetParam());
    options.replace = true;
    QuantizeReport report;
    const auto opened = QuantizeAndOpen(source, options, &report);
    ASSERT_NE(opened, nullptr);
    ASSERT_EQ(report.quantised.size(), 5u);
    EXPECT_LT(report.bytes_after, report.bytes_before);
    for (const TensorReport& tensor : report.quantised) {
      SCOPED_TRACE(tensor.module);
      const auto linear = opened->ReadLinear(tensor.module, tensor.n, tensor.k);
      ASSERT_TRUE(linear) << linear.error().message();
      EXPECT_EQ(linear->view.format, WeightFormat::kNvfp4);
      EXPECT_EQ(linear->view.input_scale, 0.0f);
      const std::vector<float> before = Rows(source.ReadLinear(tensor.module, 0, 0).value().view);
      const std::vector<float> after = Rows(linear->view);
      double error = 0, power = 0;
      for (size_t i = 0; i < before.size(); ++i) {
        error += std::pow(static_cast<double>(before[i]) - after[i], 2);
        power += std::pow(static_cast<double>(before[i]), 2);
      }
      EXPECT_NEAR(tensor.relative_error, std::sqrt(error / power), 1e-6);
      EXPECT_GT(tensor.relative_error, 0.02);
      EXPECT_LT(tensor.relative_error, 0.12);
      EXPECT_LT(tensor.largest_error, 0.2);
    }
  }
}

TEST_P(QuantizerLayoutTest, SiblingsShareATensorScale) {
  const MemoryCheckpoint source = TinyModel();
  const auto opened = QuantizeAndOpen(source, Options(Method::kMse, GetParam()));
  ASSERT_NE(opened, nullptr);
  const auto scale = [&](const std::string& module) {
    return opened->ReadLinear("model.layers.0.self_attn." + module, 0, 0)->view.global_scale;
  };
  EXPECT_EQ(scale("q_proj"), scale("k_proj"));
  EXPECT_EQ(scale("q_proj"), scale("v_proj"));
  EXPECT_NE(scale("q_proj"), scale("o_proj"));
}

TEST_P(QuantizerLayoutTest, TheRestStaysAsItIs) {
  const MemoryCheckpoint source = TinyModel();
  QuantizeReport report;
  const auto opened = QuantizeAndOpen(source, Options(Method::kMax, GetParam()), &report);
  ASSERT_NE(opened, nullptr);
  for (const char* name : {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
                           "model.layers.0.self_attn.q_proj.bias",
                           "model.layers.0.mlp.down_proj.weight"}) {  // K 40: no blocks of 16
    ASSERT_NE(opened->Find(name), nullptr) << name;
    EXPECT_EQ(opened->Find(name)->dtype, DType::kBF16) << name;
    EXPECT_EQ(BytesOf(*opened, name), BytesOf(source, name)) << name;
  }
  std::map<std::string, std::string> kept;
  for (const auto& tensor : report.kept) kept[tensor.module] = tensor.reason;
  EXPECT_EQ(kept.size(), 3u);
  EXPECT_EQ(kept["model.layers.0.mlp.down_proj"], "K 40 is not a multiple of 16");
  EXPECT_EQ(ReadFile(destination_ + "/tokenizer.json").value(), "{\"version\": \"1.0\"}");
}

INSTANTIATE_TEST_SUITE_P(Layouts, QuantizerLayoutTest,
                         testing::Values(Layout::kModelOpt, Layout::kCompressedTensors));

TEST_F(QuantizerTest, ModelOptConfigFilesSayWeightsOnly) {
  const MemoryCheckpoint source = TinyModel();
  const auto opened = QuantizeAndOpen(source, Options());
  ASSERT_NE(opened, nullptr);
  for (const TensorEntry& entry : opened->tensors())
    EXPECT_EQ(entry.name.find("input_scale"), std::string::npos) << entry.name;
  const json::object config = ReadJson("config.json");
  EXPECT_EQ(config.at("model_type"), "llama");
  const json::object& inner = config.at("quantization_config").as_object();
  EXPECT_EQ(inner.at("quant_method"), "modelopt");
  EXPECT_EQ(inner.at("quant_algo"), "W4A16_NVFP4");
  const json::object outer = ReadJson("hf_quant_config.json").at("quantization").as_object();
  EXPECT_EQ(outer.at("quant_algo"), "W4A16_NVFP4");
  EXPECT_EQ(outer.at("group_size"), 16);
  const json::array names = {"lm_head", "model.embed_tokens", "model.layers.0.mlp.down_proj"};
  EXPECT_EQ(outer.at("exclude_modules").as_array(), names);
  EXPECT_EQ(inner.at("ignore").as_array(), names);
}

TEST_F(QuantizerTest, CompressedTensorsConfigSaysWeightsOnly) {
  const MemoryCheckpoint source = TinyModel();
  const auto opened = QuantizeAndOpen(source, Options(Method::kMax, Layout::kCompressedTensors));
  ASSERT_NE(opened, nullptr);
  const json::object inner = ReadJson("config.json").at("quantization_config").as_object();
  EXPECT_EQ(inner.at("quant_method"), "compressed-tensors");
  EXPECT_EQ(inner.at("format"), "nvfp4-pack-quantized");
  const json::object& group = inner.at("config_groups").at("group_0").as_object();
  EXPECT_TRUE(group.at("input_activations").is_null());
  EXPECT_EQ(group.at("weights").at("num_bits"), 4);
  EXPECT_FALSE(fs::exists(destination_ + "/hf_quant_config.json"));
}

TEST_F(QuantizerTest, TheHeadIsIgnoredOnlyWhereItStaysWide) {
  QuantizeOptions options = Options();
  options.policy.lm_head = true;
  const auto opened = QuantizeAndOpen(TinyModel(), options);
  ASSERT_NE(opened, nullptr);
  EXPECT_EQ(opened->LinearFormat("lm_head").value(), WeightFormat::kNvfp4);
  const auto ignored = [&] {
    const json::value config = ReadJson("config.json").at("quantization_config");
    return json::serialize(config.at("ignore"));
  };
  EXPECT_EQ(ignored().find("lm_head"), std::string::npos);
  // A tied head has no tensor, but its name is looked up.
  options.replace = true;
  const MemoryCheckpoint tied({{"model.embed_tokens.weight", {40, 32}},
                               {"model.layers.0.self_attn.o_proj.weight", {32, 32}}});
  ASSERT_NE(QuantizeAndOpen(tied, options), nullptr);
  EXPECT_NE(ignored().find("lm_head"), std::string::npos);
}

TEST_F(QuantizerTest, AnExistingDestinationIsLeftAloneUnlessReplaced) {
  const MemoryCheckpoint source = TinyModel();
  fs::create_directories(destination_);
  folder_.Write("out/precious", "x");
  EXPECT_NE(ErrorOf(source, Options()).find("exists already; --force replaces it"),
            std::string::npos);
  EXPECT_TRUE(fs::exists(destination_ + "/precious"));
  QuantizeOptions options = Options();
  options.replace = true;
  ASSERT_NE(QuantizeAndOpen(source, options), nullptr);
  EXPECT_FALSE(fs::exists(destination_ + "/precious"));
}

TEST_F(QuantizerTest, AValueThatIsNotFiniteLeavesNothingBehind) {
  const std::string module = "model.layers.0.self_attn.k_proj";
  for (const uint16_t bits : {0x7FC0, 0xFF80, 0x7F81}) {  // NaN, -infinity, NaN
    MemoryCheckpoint source = TinyModel();
    source.values(module + ".weight")[77] = bits;
    EXPECT_EQ(ErrorOf(source, Options()),
              "memory: " + module + " holds a value that is not finite");
    EXPECT_TRUE(FolderIsEmpty());
  }
}

TEST_F(QuantizerTest, AFailureHalfwayLeavesNothingBehind) {
  MemoryCheckpoint source = TinyModel();
  source.unreadable = "model.norm.weight";  // the last one written
  EXPECT_NE(ErrorOf(source, Options()).find("disk on fire"), std::string::npos);
  EXPECT_TRUE(FolderIsEmpty());
  // What was there before stays whole.
  fs::create_directories(destination_);
  folder_.Write("out/precious", "x");
  QuantizeOptions options = Options();
  options.replace = true;
  EXPECT_NE(ErrorOf(source, options), "");
  EXPECT_TRUE(fs::exists(destination_ + "/precious"));
  EXPECT_FALSE(fs::exists(destination_ + ".partial"));
}

TEST_F(QuantizerTest, ACancelledJobLeavesNothingBehind) {
  const MemoryCheckpoint source = TinyModel();
  for (int allowed = 0; allowed < 8; ++allowed) {
    QuantizeOptions options = Options();
    int asked = 0;
    options.cancelled = [&] { return ++asked > allowed; };
    const auto report = QuantizeCheckpoint(source, destination_, options);
    ASSERT_FALSE(report) << allowed;
    EXPECT_EQ(report.error().code(), Code::kCancelled);
    EXPECT_TRUE(FolderIsEmpty()) << allowed;
  }
}

// What is NVFP4 already is copied, in either layout: nothing is rounded a second time.
TEST_F(QuantizerTest, Nvfp4IsCopied) {
  const auto source = OpenCheckpoint(GoldenPath("formats/modelopt_nvfp4")).value();
  for (const Layout layout : {Layout::kModelOpt, Layout::kCompressedTensors}) {
    QuantizeOptions options = Options(Method::kMse, layout);
    options.replace = true;
    QuantizeReport report;
    const auto opened = QuantizeAndOpen(*source, options, &report);
    ASSERT_NE(opened, nullptr);
    EXPECT_EQ(report.copied, 7);
    EXPECT_TRUE(report.quantised.empty());
    int inexact = 0;
    for (const std::string& module : LinearModules(*source)) {
      SCOPED_TRACE(module);
      const auto before = source->ReadLinear(module, 0, 0).value();
      const auto after = opened->ReadLinear(module, 0, 0).value();
      EXPECT_EQ(std::memcmp(before.view.data, after.view.data, before.view.data_bytes()), 0);
      EXPECT_EQ(std::memcmp(before.view.scales, after.view.scales, before.view.scale_bytes()), 0);
      EXPECT_FLOAT_EQ(before.view.input_scale, after.view.input_scale);
      inexact += before.view.global_scale != after.view.global_scale;
    }
    EXPECT_EQ(inexact, report.inexact_tensor_scales);
    EXPECT_TRUE(layout == Layout::kCompressedTensors || inexact == 0);
  }
}

TEST_F(QuantizerTest, Nvfp4IsNotMadeCoarser) {
  const auto source = OpenCheckpoint(GoldenPath("formats/modelopt_nvfp4")).value();
  QuantizeOptions options = Options();
  options.format = Format::kMxfp4;
  EXPECT_NE(ErrorOf(*source, options).find("is NVFP4 already"), std::string::npos);
  EXPECT_TRUE(FolderIsEmpty());
}

// expected.safetensors holds the producers' own dequantisation.
TEST_F(QuantizerTest, Bf16OfNvfp4IsTheDequantisedWeightRounded) {
  for (const char* name : {"formats/modelopt_nvfp4", "formats/compressed_tensors_nvfp4"}) {
    const auto source = OpenCheckpoint(GoldenPath(name)).value();
    QuantizeOptions options = Options();
    options.format = Format::kBf16;
    options.replace = true;
    const auto opened = QuantizeAndOpen(*source, options);
    ASSERT_NE(opened, nullptr);
    const auto expected =
        formats::OpenSafetensors(GoldenPath(std::string(name) + "/expected.safetensors")).value();
    ASSERT_EQ(expected->header.tensors.size(), 7u);
    const std::byte* data = DataOf(*expected);
    for (const formats::SafetensorsEntry& entry : expected->header.tensors) {
      const auto linear = opened->ReadLinear(entry.name, entry.shape[0], entry.shape[1]);
      ASSERT_TRUE(linear) << linear.error().message();
      EXPECT_EQ(linear->view.format, WeightFormat::kBf16);
      const std::vector<float> ours = Rows(linear->view);
      for (size_t i = 0; i < ours.size(); ++i) {
        float value = 0;
        std::memcpy(&value, data + entry.begin + 4 * i, 4);
        ASSERT_EQ(ours[i], RoundToBf16(value)) << name << " " << entry.name << " " << i;
      }
    }
    // No trace of the quantisation is left, companions and configuration included.
    EXPECT_FALSE(ReadJson("config.json").contains("quantization_config"));
    EXPECT_FALSE(fs::exists(destination_ + "/hf_quant_config.json"));
    for (const TensorEntry& entry : opened->tensors())
      EXPECT_TRUE(entry.dtype == DType::kBF16 || entry.name.ends_with("k_scale") ||
                  entry.name.ends_with("v_scale"))
          << entry.name;
  }
}

TEST_F(QuantizerTest, AModelWithNothingToQuantiseIsRefused) {
  const MemoryCheckpoint source({{"model.embed_tokens.weight", {40, 32}}});
  EXPECT_EQ(ErrorOf(source, Options()),
            "memory: no tensor would change: every matrix is kept in higher precision");
  EXPECT_TRUE(FolderIsEmpty());
}

TEST_F(QuantizerTest, AZeroTensorKeepsFiniteScales) {
  MemoryCheckpoint source = TinyModel();
  std::fill_n(source.values("model.layers.0.self_attn.o_proj.weight"), 32 * 32, uint16_t{0});
  QuantizeReport report;
  const auto opened = QuantizeAndOpen(source, Options(), &report);
  ASSERT_NE(opened, nullptr);
  const auto linear = opened->ReadLinear("model.layers.0.self_attn.o_proj", 32, 32);
  ASSERT_TRUE(linear) << linear.error().message();
  EXPECT_EQ(linear->view.global_scale, 1.0f);
  EXPECT_EQ(Rows(linear->view), std::vector<float>(32 * 32, 0.0f));
}

}  // namespace
}  // namespace nibble::quantize
