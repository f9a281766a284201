// Calibration: what is counted, what is written, and that smoothing is taken where it helps alone.
#include "quantize/smoothing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "numerics/bf16.h"
#include "numerics/nvfp4.h"
#include "quantize/quantizer.h"
#include "quantize/testing/memory_checkpoint.h"
#include "testing/temp_folder.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kN = 64, kK = 128, kRows = 200;
const std::string kModule = "model.layers.0.mlp.up_proj";

// Inputs of ±1, but for every 16th column, which is `outlier` times as large.
Calibration MakeCalibration(float outlier) {
  Calibration calibration(true);
  std::mt19937 random(9);
  std::vector<uint16_t> x(kRows * kK);
  for (int64_t i = 0; i < kRows * kK; ++i)
    x[i] = Bf16FromFloat((random() % 2 == 0 ? 1.0f : -1.0f) * (i % 16 == 3 ? outlier : 1.0f));
  const std::vector<std::string> modules = {kModule};
  for (int64_t row = 0; row < kRows; row += 50)
    calibration.OnInput(modules, x.data() + row * kK, 50, kK);
  return calibration;
}

TEST(Calibration, CountsEveryRowAndKeepsASpreadSample) {
  Calibration calibration(true);
  const std::vector<std::string> modules = {"model.language_model.layers.0.a", "model.layers.0.b"};
  for (int row = 0; row < 1000; ++row) {
    const std::vector<uint16_t> x = {Bf16FromFloat(static_cast<float>(row % 256)),
                                     Bf16FromFloat(-2.0f)};
    calibration.OnInput(modules, x.data(), 1, 2);
  }
  const InputStatistics* statistics = calibration.Find("model.layers.0.a");
  ASSERT_NE(statistics, nullptr);
  EXPECT_EQ(statistics, calibration.Find("model.layers.0.b"));
  EXPECT_EQ(calibration.Find("model.layers.0.c"), nullptr);
  EXPECT_EQ(statistics->rows, 1000);
  EXPECT_EQ(statistics->amax, 255.0f);
  EXPECT_EQ(statistics->sum_magnitude[1], 2000.0);
  EXPECT_EQ(statistics->sum_square[1], 4000.0);
  const std::vector<float> multipliers = {0.5f, 100.0f};
  EXPECT_EQ(statistics->LargestScaled(multipliers), 200.0f);
  // Every 16th row: 0, 16, 32, ...
  ASSERT_EQ(statistics->sample_rows(), 63);
  for (int64_t i = 0; i < statistics->sample_rows(); ++i)
    EXPECT_EQ(Bf16ToFloat(statistics->sample[2 * i]), static_cast<float>(i * 16 % 256)) << i;
}

TEST(Calibration, KeepsRangesAloneOfWhatIsNotSmoothed) {
  const std::vector<uint16_t> x = {Bf16FromFloat(1.0f), Bf16FromFloat(-3.0f)};
  const auto is_range_alone = [&](bool for_smoothing, const std::string& module) {
    Calibration calibration(for_smoothing);
    calibration.OnInput({{module}}, x.data(), 1, 2);
    const InputStatistics* statistics = calibration.Find(module);
    EXPECT_EQ(statistics->amax, 3.0f);
    EXPECT_EQ(statistics->rows, 1);
    EXPECT_EQ(statistics->column_amax.empty(), statistics->sample.empty());
    return statistics->sample.empty();
  };
  EXPECT_TRUE(is_range_alone(false, "model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(is_range_alone(true, "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(is_range_alone(true, "model.layers.0.mlp.experts.3.up_proj"));
  EXPECT_TRUE(is_range_alone(true, "model.layers.0.self_attn.kv_b_proj"));
}

class SmoothingTest : public testing::Test {
 protected:
  std::unique_ptr<formats::Checkpoint> Quantised(const Calibration& calibration, bool smoothing,
                                                 Layout layout = Layout::kModelOpt) {
    const auto done = QuantizeCheckpoint(source_, destination_,
                                         {.layout = layout,
                                          .calibration = &calibration,
                                          .smoothing = smoothing,
                                          .pool = &pool_,
                                          .replace = true,
                                          .quiet = true});
    EXPECT_TRUE(done) << done.error().message();
    return done ? formats::OpenCheckpoint(destination_).value() : nullptr;
  }

  // Of the linear's outputs over the calibration's own sample.
  double OutputError(const formats::Checkpoint& made, const InputStatistics& inputs) {
    const auto before = source_.ReadLinear(kModule, kN, kK).value();
    const auto after = made.ReadLinear(kModule, kN, kK).value();
    double error = 0;
    std::vector<float> row(kK), back(kK);
    for (int64_t i = 0; i < kN; ++i) {
      DequantizeRow(before.view, i, row.data());
      DequantizeRow(after.view, i, back.data());
      for (int64_t s = 0; s < inputs.sample_rows(); ++s) {
        double difference = 0;
        for (int64_t j = 0; j < kK; ++j) {
          const float x = Bf16ToFloat(inputs.sample[s * kK + j]);
          const float p = after.view.input_multiplier ? after.view.input_multiplier[j] : 1.0f;
          difference += double(x) * row[j] - double(RoundToBf16(x * p)) * back[j];
        }
        error += difference * difference;
      }
    }
    return error;
  }

  std::string Config(const std::string& key) {
    const auto config = boost::json::parse(ReadFile(destination_ + "/config.json").value());
    return std::string(config.at("quantization_config").at(key).as_string());
  }

  TempFolder folder_;
  std::string destination_ = folder_.path() + "/out";
  ThreadPool pool_{2};
  MemoryCheckpoint source_{
      {{kModule + ".weight", {kN, kK}}, {"model.layers.0.mlp.down_proj.weight", {kK, kN}}}};
};

TEST_F(SmoothingTest, LowersTheOutputErrorWhereActivationsHaveOutliers) {
  const Calibration calibration = MakeCalibration(50.0f);
  const InputStatistics& inputs = *calibration.Find(kModule);
  const auto plain = Quantised(calibration, false);
  const double before = OutputError(*plain, inputs);
  EXPECT_EQ(plain->ReadLinear(kModule, kN, kK)->view.input_multiplier, nullptr);
  const auto smoothed = Quantised(calibration, true);
  EXPECT_LT(OutputError(*smoothed, inputs), 0.7 * before);
  const QuantView view = smoothed->ReadLinear(kModule, kN, kK)->view;
  ASSERT_NE(view.input_multiplier, nullptr);
  EXPECT_LT(view.input_scale * kNvfp4Range, inputs.amax);
  EXPECT_EQ(Config("quant_algo"), "MIXED_PRECISION");  // down_proj was not seen
}

TEST_F(SmoothingTest, IsLeftOutWhereItDoesNotHelp) {
  const auto made = Quantised(MakeCalibration(1.0f), true);
  EXPECT_EQ(made->Find(kModule + ".pre_quant_scale"), nullptr);
}

TEST_F(SmoothingTest, ActivationScalesAreWrittenInBothLayouts) {
  const Calibration calibration = MakeCalibration(4.0f);
  const float expected = calibration.Find(kModule)->amax / kNvfp4Range;
  for (const Layout layout : {Layout::kModelOpt, Layout::kCompressedTensors}) {
    const auto made = Quantised(calibration, false, layout);
    ASSERT_NE(made, nullptr);
    EXPECT_FLOAT_EQ(made->ReadLinear(kModule, kN, kK)->view.input_scale, expected);
    // What the text never reached stays weight-only.
    EXPECT_EQ(made->ReadLinear("model.layers.0.mlp.down_proj", kK, kN)->view.input_scale, 0.0f);
  }
  EXPECT_EQ(Config("format"), "mixed-precision");
}

}  // namespace
}  // namespace nibble::quantize
