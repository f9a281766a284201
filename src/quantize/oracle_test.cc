// What others make of the same weights: ModelOpt's own bytes, and what compressed-tensors reads in
// our files. Goldens by tools/make_quantize_goldens.py.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "numerics/bf16.h"
#include "numerics/nvfp4.h"
#include "quantize/quantizer.h"
#include "quantize/scale_search.h"
#include "quantize/testing/written.h"
#include "testing/golden.h"
#include "testing/temp_folder.h"

namespace nibble::quantize {
namespace {

using formats::Checkpoint;
using formats::OpenCheckpoint;
using formats::SafetensorsEntry;

class OracleTest : public testing::Test {
 protected:
  std::unique_ptr<Checkpoint> Quantised(QuantizeOptions options) {
    options.pool = &pool_;
    options.quiet = true;
    options.replace = true;
    const std::string destination = folder_.path() + "/out";
    const auto done = QuantizeCheckpoint(*source_, destination, options);
    EXPECT_TRUE(done) << done.error().message();
    return done ? OpenCheckpoint(destination).value() : nullptr;
  }

  std::unique_ptr<Checkpoint> source_ = OpenCheckpoint(GoldenPath("formats/sharded_bf16")).value();
  TempFolder folder_;
  ThreadPool pool_{2};
};

// tests/golden/formats/modelopt_nvfp4 is sharded_bf16 as ModelOpt quantised it, on a CPU.
TEST_F(OracleTest, MaxGivesTheBytesOfModelOpt) {
  const auto golden = OpenCheckpoint(GoldenPath("formats/modelopt_nvfp4")).value();
  const auto ours = Quantised({.method = Method::kMax, .rounding = Rounding::kCpu});
  ASSERT_NE(ours, nullptr);
  int linears = 0;
  for (const formats::TensorEntry& entry : golden->tensors()) {
    const std::string module = entry.name.substr(0, entry.name.rfind('.'));
    if (!entry.name.ends_with(".weight_scale_2")) continue;
    ++linears;
    for (const char* suffix : {".weight", ".weight_scale", ".weight_scale_2"})
      EXPECT_EQ(BytesOf(*ours, module + suffix), BytesOf(*golden, module + suffix)) << module;
  }
  EXPECT_EQ(linears, 7);
}

// The two roundings of the tensor scale are at most one step apart.
TEST_F(OracleTest, CudaRoundingDiffersInTheLastBitAlone) {
  for (const float amax : {0.3125f, 1.03125f, 0.7f, 3.0f, 1e-3f}) {
    const float cuda = TensorScale(amax, Method::kMax, Layout::kModelOpt, Rounding::kCuda);
    const float cpu = TensorScale(amax, Method::kMax, Layout::kModelOpt, Rounding::kCpu);
    EXPECT_LE(std::abs(std::bit_cast<int32_t>(cuda) - std::bit_cast<int32_t>(cpu)), 1);
  }
  const float gpu = TensorScale(1.03125f, Method::kMax, Layout::kModelOpt, Rounding::kCuda);
  const float cpu = TensorScale(1.03125f, Method::kMax, Layout::kModelOpt, Rounding::kCpu);
  EXPECT_EQ(std::bit_cast<uint32_t>(gpu), 0x39C92493u);
  EXPECT_EQ(std::bit_cast<uint32_t>(cpu), 0x39C92492u);
}

TEST_F(OracleTest, Mxfp4GivesTheBytesOfModelOpt) {
  const auto golden = formats::OpenSafetensors(GoldenPath("quantize/mxfp4.safetensors")).value();
  const auto ours = Quantised({.format = Format::kMxfp4, .method = Method::kMax});
  ASSERT_NE(ours, nullptr);
  ASSERT_EQ(golden->header.tensors.size(), 12u);
  for (const SafetensorsEntry& entry : golden->header.tensors) {
    const bool scales = entry.name.ends_with(".scale");
    const std::string module = entry.name.substr(0, entry.name.size() - (scales ? 6 : 0));
    const std::vector<uint8_t> bytes =
        BytesOf(*ours, module + (scales ? ".weight_scale" : ".weight"));
    ASSERT_EQ(static_cast<int64_t>(bytes.size()), entry.end - entry.begin) << entry.name;
    EXPECT_EQ(std::memcmp(bytes.data(), DataOf(*golden) + entry.begin, bytes.size()), 0)
        << entry.name;
  }
}

// compressed-tensors' own decompressor, on files that this quantizer wrote, gives BF16.
TEST_F(OracleTest, CompressedTensorsReadsTheWeightsThatWeRead) {
  const auto golden =
      formats::OpenSafetensors(GoldenPath("quantize/compressed.safetensors")).value();
  const struct {
    std::string name;
    Format format;
    Method method;
    int linears;
  } cases[] = {{"nvfp4.max.", Format::kNvfp4, Method::kMax, 7},
               {"nvfp4.mse.", Format::kNvfp4, Method::kMse, 7},
               {"nvfp4.four-over-six.", Format::kNvfp4, Method::kFourOverSix, 7},
               {"mxfp4.mse.", Format::kMxfp4, Method::kMse, 6},
               {"int4.mse.", Format::kInt4, Method::kMse, 6},
               {"fp8.max.", Format::kFp8, Method::kMax, 7}};
  for (const auto& [name, format, method, linears] : cases) {
    const auto ours =
        Quantised({.format = format, .method = method, .layout = Layout::kCompressedTensors});
    ASSERT_NE(ours, nullptr);
    int compared = 0;
    for (const SafetensorsEntry& entry : golden->header.tensors) {
      if (!entry.name.starts_with(name)) continue;
      SCOPED_TRACE(entry.name);
      const auto linear = ours->ReadLinear(entry.name.substr(name.size()), 0, 0);
      ASSERT_TRUE(linear) << linear.error().message();
      const std::vector<float> rows = Rows(linear->view);
      ASSERT_EQ(static_cast<int64_t>(rows.size()) * 2, entry.end - entry.begin);
      for (size_t i = 0; i < rows.size(); ++i) {
        uint16_t theirs;
        std::memcpy(&theirs, DataOf(*golden) + entry.begin + 2 * i, 2);
        ASSERT_EQ(RoundToBf16(rows[i]), Bf16ToFloat(theirs)) << i;
      }
      ++compared;
    }
    EXPECT_EQ(compared, linears) << name;
  }
}

// In FP32 too: a reader that divides by the stored divisor sees what one that multiplies by its
// reciprocal sees.
TEST_F(OracleTest, DividingReadersAgreeBitForBit) {
  const auto ours = Quantised({.layout = Layout::kCompressedTensors});
  ASSERT_NE(ours, nullptr);
  for (const formats::TensorEntry& entry : ours->tensors()) {
    if (!entry.name.ends_with(".weight_global_scale")) continue;
    const float divisor = ours->ReadScalar(entry).value();
    for (int code = 0; code < 0x7F; ++code) {
      const float scale = E4M3ToFloat(static_cast<uint8_t>(code));
      EXPECT_EQ(scale / divisor, scale * (1.0f / divisor)) << entry.name << " " << code;
    }
  }
}

// The scales that ModelOpt's calibrator chose among all 126 (its candidates are rounded a little
// differently, so that two scales of practically equal error may change places).
TEST(ScaleSearchGolden, LeastErrorGivesTheScalesOfModelOpt) {
  const auto source = OpenCheckpoint(GoldenPath("formats/sharded_bf16")).value();
  const auto golden = formats::OpenSafetensors(GoldenPath("quantize/sweep.safetensors")).value();
  ASSERT_EQ(golden->header.tensors.size(), 7u);
  int blocks = 0, same = 0;
  for (const formats::SafetensorsEntry& entry : golden->header.tensors) {
    const std::vector<float> weight = Rows(source->ReadLinear(entry.name, 0, 0).value().view);
    const float scale = Nvfp4TensorScale(MaxMagnitude(weight.data(), int(weight.size())));
    const ScaleSearch search(scale);
    for (size_t i = 0; i < weight.size() / kNvfp4Block; ++i) {
      const float* block = &weight[i * kNvfp4Block];
      const uint8_t ours = search.BestScale(block);
      const auto theirs = static_cast<uint8_t>(DataOf(*golden)[entry.begin + int64_t(i)]);
      ++blocks;
      same += ours == theirs;
      const float error = Nvfp4BlockError(block, ours, scale);
      EXPECT_LE(error, Nvfp4BlockError(block, theirs, scale));
      EXPECT_GE(error, 0.99999f * Nvfp4BlockError(block, theirs, scale)) << entry.name << " " << i;
    }
  }
  EXPECT_EQ(blocks, 480);
  EXPECT_GE(same, 470);
}

}  // namespace
}  // namespace nibble::quantize
