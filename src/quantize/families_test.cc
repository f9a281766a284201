// Linears are found by what is stored: stacked experts, MXFP4, checkpoints that somebody has
// quantised in part.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "numerics/bf16.h"
#include "numerics/mxfp4.h"
#include "quantize/quantizer.h"
#include "quantize/testing/memory_checkpoint.h"
#include "testing/temp_folder.h"

namespace nibble::quantize {
namespace {

namespace json = boost::json;
using formats::Checkpoint;

std::vector<float> Rows(const QuantView& view) {
  std::vector<float> rows(view.n * view.k);
  for (int64_t row = 0; row < view.n; ++row) DequantizeRow(view, row, &rows[row * view.k]);
  return rows;
}

class FamiliesTest : public testing::Test {
 protected:
  std::unique_ptr<Checkpoint> Quantised(const Checkpoint& source, QuantizeOptions options = {},
                                        QuantizeReport* report = nullptr) {
    options.pool = &pool_;
    options.quiet = true;
    options.replace = true;
    const auto done = QuantizeCheckpoint(source, destination_, options);
    EXPECT_TRUE(done) << done.error().message();
    if (!done) return nullptr;
    if (report != nullptr) *report = *done;
    auto opened = formats::OpenCheckpoint(destination_);
    EXPECT_TRUE(opened) << opened.error().message();
    return opened ? std::move(*opened) : nullptr;
  }

  json::object Config() {
    return json::parse(ReadFile(destination_ + "/config.json").value()).as_object();
  }

  // The largest difference between a quantised linear and the values it was made of, over the
  // largest of them.
  static float Difference(const Checkpoint& checkpoint, const std::string& module, int64_t n,
                          int64_t k, const std::function<float(int64_t, int64_t)>& expected) {
    const auto linear = checkpoint.ReadLinear(module, n, k);
    EXPECT_TRUE(linear) << linear.error().message();
    if (!linear) return 1;
    EXPECT_EQ(linear->view.format, WeightFormat::kNvfp4);
    const std::vector<float> rows = Rows(linear->view);
    float largest = 0, amax = 0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        largest = std::max(largest, std::abs(rows[i * k + j] - expected(i, j)));
        amax = std::max(amax, std::abs(expected(i, j)));
      }
    }
    return largest / amax;
  }

  TempFolder folder_;
  std::string destination_ = folder_.path() + "/out";
  ThreadPool pool_{2};
};

constexpr int64_t kExperts = 3, kF = 32, kD = 64;
const std::string kModule = "model.layers.0.mlp.experts";

TEST_F(FamiliesTest, StackedExpertsAreWrittenOneByOne) {
  MemoryCheckpoint source({{kModule + ".gate_up_proj", {kExperts, 2 * kF, kD}},
                           {kModule + ".down_proj", {kExperts, kD, kF}},
                           {"model.layers.0.mlp.gate.weight", {kExperts, kD}}},
                          "qwen3_5_moe");
  QuantizeReport report;
  const auto made = Quantised(source, {}, &report);
  ASSERT_NE(made, nullptr);
  EXPECT_EQ(report.quantised.size(), 3u * kExperts);
  EXPECT_EQ(made->Find(kModule + ".gate_up_proj"), nullptr);
  EXPECT_EQ(made->Find("model.layers.0.mlp.gate.weight")->dtype, DType::kBF16);
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    const auto stacked = [&](int64_t first) {
      return [&source, expert, first](int64_t i, int64_t j) {
        return source.value(kModule + ".gate_up_proj", (expert * 2 * kF + first + i) * kD + j);
      };
    };
    const std::string prefix = kModule + "." + std::to_string(expert);
    EXPECT_LT(Difference(*made, prefix + ".gate_proj", kF, kD, stacked(0)), 0.2f);
    EXPECT_LT(Difference(*made, prefix + ".up_proj", kF, kD, stacked(kF)), 0.2f);
    EXPECT_LT(Difference(*made, prefix + ".down_proj", kD, kF,
                         [&](int64_t i, int64_t j) {
                           return source.value(kModule + ".down_proj", (expert * kD + i) * kF + j);
                         }),
              0.2f);
    EXPECT_EQ(made->ReadLinear(prefix + ".gate_proj", 0, 0)->view.global_scale,
              made->ReadLinear(prefix + ".up_proj", 0, 0)->view.global_scale);
  }
}

// gpt-oss in BF16: columns are the outputs, gate and up take turns, and there are biases.
TEST_F(FamiliesTest, InterleavedColumnsAreTakenApart) {
  MemoryCheckpoint source({{kModule + ".gate_up_proj", {kExperts, kD, 2 * kF}},
                           {kModule + ".gate_up_proj_bias", {kExperts, 2 * kF}},
                           {kModule + ".down_proj", {kExperts, kF, kD}},
                           {kModule + ".down_proj_bias", {kExperts, kD}},
                           {"model.layers.0.mlp.router.weight", {kExperts, kD}}},
                          "gpt_oss");
  const auto made = Quantised(source);
  ASSERT_NE(made, nullptr);
  const std::string prefix = kModule + ".2";
  EXPECT_LT(Difference(*made, prefix + ".up_proj", kF, kD,
                       [&](int64_t i, int64_t j) {
                         return source.value(kModule + ".gate_up_proj",
                                             (2 * kD + j) * 2 * kF + 2 * i + 1);
                       }),
            0.2f);
  const auto bias = made->Read(prefix + ".gate_proj.bias");
  ASSERT_TRUE(bias);
  ASSERT_EQ(bias->view.shape, Shape{kF});
  for (int64_t i = 0; i < kF; ++i) {
    uint16_t bits;
    std::memcpy(&bits, bias->view.data + 2 * i, 2);
    EXPECT_EQ(bits, source.values(kModule + ".gate_up_proj_bias")[2 * 2 * kF + 2 * i]);
  }
  EXPECT_EQ(made->Find(kModule + ".gate_up_proj_bias"), nullptr);
}

TEST_F(FamiliesTest, StackedExpertsOfTheDraftHeadStayStacked) {
  const MemoryCheckpoint source({{"mtp.layers.0.mlp.experts.gate_up_proj", {2, 2 * kF, kD}},
                                 {"mtp.layers.0.mlp.experts.down_proj", {2, kD, kF}},
                                 {"model.layers.0.self_attn.o_proj.weight", {kD, kD}}},
                                "qwen3_5_moe");
  const auto made = Quantised(source);
  ASSERT_NE(made, nullptr);
  EXPECT_NE(made->Find("mtp.layers.0.mlp.experts.gate_up_proj"), nullptr);
  EXPECT_NE(json::serialize(Config()).find("\"mtp.layers.0.mlp.experts\""), std::string::npos);
}

// A linear in MXFP4 whose block exponents lie up to `span` apart.
std::unique_ptr<MemoryCheckpoint> Mxfp4Model(int span) {
  auto source = std::make_unique<MemoryCheckpoint>(std::map<std::string, Shape>{});
  constexpr int64_t kN = 8, kK = 64;
  std::mt19937 random(5);
  std::vector<uint8_t> codes(kN * kK / 2), scales(kN * kK / kMxfp4Block);
  for (uint8_t& pair : codes) pair = static_cast<uint8_t>(random() | 0x11);
  for (size_t i = 0; i < scales.size(); ++i)
    scales[i] = static_cast<uint8_t>(120 - static_cast<int>(i) * span / (int(scales.size()) - 1));
  source->Add("model.layers.0.mlp.down_proj.weight_packed", DType::kU8, {kN, kK / 2}, codes);
  source->Add("model.layers.0.mlp.down_proj.weight_scale", DType::kU8, {kN, kK / 32}, scales);
  return source;
}

TEST_F(FamiliesTest, Mxfp4BecomesNvfp4WithoutLossWhereTheExponentsAllow) {
  for (const int span : {0, 9, 17}) {
    const auto source = Mxfp4Model(span);
    QuantizeReport report;
    const auto made = Quantised(*source, {}, &report);
    ASSERT_NE(made, nullptr);
    EXPECT_EQ(Rows(made->ReadLinear("model.layers.0.mlp.down_proj", 0, 0)->view),
              Rows(source->ReadLinear("model.layers.0.mlp.down_proj", 0, 0)->view));
    ASSERT_EQ(report.quantised.size(), 1u);
    EXPECT_EQ(report.quantised[0].note, "exact from mxfp4");
    EXPECT_EQ(report.quantised[0].relative_error, 0);
  }
  QuantizeReport report;
  ASSERT_NE(Quantised(*Mxfp4Model(25), {}, &report), nullptr);
  EXPECT_NE(report.quantised[0].note.find("blocks rounded"), std::string::npos);
  EXPECT_LT(report.quantised[0].relative_error, 1e-4);  // only tiny blocks are
}

// "Shrink what the checkpoint left in BF16": what is NVFP4 is copied, the named rest is quantised.
TEST_F(FamiliesTest, LeftoversOfAQuantisedCheckpoint) {
  const std::string attention = "model.layers.0.self_attn.", mlp = "model.layers.0.mlp.";
  const MemoryCheckpoint whole({{"lm_head.weight", {40, 64}},
                                {attention + "q_proj.weight", {32, 64}},
                                {attention + "o_proj.weight", {64, 32}},
                                {mlp + "up_proj.weight", {32, 64}}});
  QuantizeOptions first;
  first.policy.keep = {"self_attn."};
  const auto partly = Quantised(whole, first);
  ASSERT_NE(partly, nullptr);
  const std::string original = destination_;
  destination_ = folder_.path() + "/again";
  QuantizeOptions second;
  second.policy.lm_head = true;
  QuantizeReport report;
  const auto made = Quantised(*partly, second, &report);
  ASSERT_NE(made, nullptr);
  EXPECT_EQ(report.copied, 1);
  EXPECT_EQ(report.quantised.size(), 3u);
  const auto before = partly->ReadLinear(mlp + "up_proj", 0, 0).value();
  const auto after = made->ReadLinear(mlp + "up_proj", 0, 0).value();
  EXPECT_EQ(Rows(before.view), Rows(after.view));
  EXPECT_EQ(made->LinearFormat("lm_head").value(), WeightFormat::kNvfp4);
}

TEST_F(FamiliesTest, SearchedScalesErrNoMoreThanMax) {
  const MemoryCheckpoint source({{"model.layers.0.self_attn.q_proj.weight", {64, 128}},
                                 {"model.layers.0.self_attn.k_proj.weight", {32, 128}},
                                 {"model.layers.0.mlp.down_proj.weight", {64, 256}}});
  for (const Format format : {Format::kNvfp4, Format::kMxfp4, Format::kInt4, Format::kFp8}) {
    QuantizeReport plain;
    QuantizeOptions options{
        .format = format, .method = Method::kMax, .layout = Layout::kCompressedTensors};
    Quantised(source, options, &plain);
    for (const Method method : {Method::kMse, Method::kFourOverSix}) {
      options.method = method;
      QuantizeReport searched;
      Quantised(source, options, &searched);
      ASSERT_EQ(searched.quantised.size(), 3u);
      for (size_t i = 0; i < 3; ++i)
        EXPECT_LE(searched.quantised[i].relative_error, plain.quantised[i].relative_error);
    }
  }
}

TEST_F(FamiliesTest, PoliciesChooseWhatIsQuantised) {
  const MemoryCheckpoint source({{"model.embed_tokens.weight", {40, 64}},
                                 {"lm_head.weight", {40, 64}},
                                 {"model.layers.0.self_attn.q_proj.weight", {64, 64}},
                                 {"model.layers.0.mlp.up_proj.weight", {64, 64}},
                                 {"mtp.fc.weight", {64, 64}}});
  const auto quantised = [&](QuantizePolicy policy) {
    QuantizeReport report;
    Quantised(source, {.policy = std::move(policy)}, &report);
    return report.quantised.size();
  };
  using Preset = QuantizePolicy::Preset;
  EXPECT_EQ(quantised({}), 2u);
  EXPECT_EQ(quantised({.preset = Preset::kFeedForward}), 1u);
  EXPECT_EQ(quantised({.preset = Preset::kEverything}), 4u);
  EXPECT_EQ(quantised({.quantise = {"mtp.fc"}}), 3u);
  EXPECT_EQ(quantised({.keep = {"mtp."}, .quantise = {"mtp.fc"}}), 2u);
}

}  // namespace
}  // namespace nibble::quantize
