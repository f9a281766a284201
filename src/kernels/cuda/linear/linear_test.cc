// The GPU's linear, packing and embedding against ref/, and its bits against themselves: no token's
// may depend on how many others there are.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/cuda/device_facts.h"
#include "kernels/cuda/linear/decode.h"
#include "kernels/cuda/linear/stream_token.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/testing/synced_ops.h"
#include "kernels/linear_fixture.h"

namespace nibble::kernels {
namespace {

constexpr WeightFormat kFormats[] = {
    WeightFormat::kNvfp4, WeightFormat::kMxfp4, WeightFormat::kBf16, WeightFormat::kFp8,
    WeightFormat::kF16,   WeightFormat::kF32,   WeightFormat::kInt4, WeightFormat::kInt8};

constexpr int64_t kWhole = int64_t{1} << 40;

// Every way in which block scales lie.
std::vector<BlockScales> ScalesOf(WeightFormat format) {
  if (format == WeightFormat::kFp8)
    return {{DType::kF32, kWhole, kWhole}, {DType::kBF16, 1, kWhole}, {DType::kF32, 128, 128},
            {DType::kF32, 16, 32},         {DType::kF8E8M0, 1, 32},   {DType::kF32, 48, 96}};
  if (format == WeightFormat::kInt4 || format == WeightFormat::kInt8)
    return {{DType::kBF16, 1, 128, true},
            {DType::kF16, 1, 64},
            {DType::kF32, 1, 32, true},
            {DType::kF32, 1, kWhole},
            {DType::kF16, 1, 96, true}};
  return {{}};
}

int64_t BlockOf(WeightFormat format) {
  if (format == WeightFormat::kNvfp4) return 16;
  if (format == WeightFormat::kInt4) return 2;
  return format == WeightFormat::kMxfp4 ? 32 : 1;
}

class CudaLinear : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::SyncedOps() == nullptr) GTEST_SKIP() << "no GPU";
  }
  const OpTable& ops() const { return *cuda::SyncedOps(); }
  static std::unique_ptr<PackedWeight> Pack(Runner& runner, const Stored& stored) {
    return runner.Pack({&stored.view, 1}, ActivationFormat::kBf16);
  }
  void ExpectLikeRef(const Stored& stored, const std::vector<uint16_t>& x,
                     const std::vector<float>& bias = {}) {
    Runner gpu(ops());
    Runner ref(RefOps());
    std::vector<uint16_t> met = x;
    std::vector<float> magnitudes =
        Magnitudes({&stored.view, 1},
                   stored.view.column_order == nullptr && stored.view.input_multiplier == nullptr
                       ? x
                       : Transformed(stored.view, x));
    if (!bias.empty())
      for (size_t i = 0; i < magnitudes.size(); ++i)
        magnitudes[i] += std::fabs(bias[i % bias.size()]);
    ExpectClose(gpu.Linear(*Pack(gpu, stored), x, bias), ref.Linear(*Pack(ref, stored), x, bias),
                magnitudes);
  }
};

std::vector<float> MakeBias(int64_t n) {
  std::vector<float> bias(n);
  for (int64_t i = 0; i < n; ++i) bias[i] = static_cast<float>(i % 100) * 0.01f;
  return bias;
}

TEST_F(CudaLinear, MatchesRefOverAwkwardShapes) {
  uint32_t seed = 1;
  for (const WeightFormat format : kFormats)
    for (const BlockScales& scales : ScalesOf(format))
      for (const int64_t n : {1, 17, 96})
        for (const int64_t k : {16, 32, 100, 320, 576, 1536}) {
          if (k % BlockOf(format) != 0) continue;
          SCOPED_TRACE(testing::Message()
                       << WeightFormatName(format) << " N=" << n << " K=" << k << " scales "
                       << scales.block_n << " x " << scales.block_k);
          const Stored stored = MakeWeight(format, n, k, ++seed, 0.003f, scales);
          const auto x = MakeActivations(3 * k, ++seed);
          ExpectLikeRef(stored, x);
          if (HasFatalFailure()) return;
          ExpectLikeRef(stored, x, MakeBias(n));
          if (HasFatalFailure()) return;
        }
}

std::vector<std::byte> PackedBytes(const PackedWeight& weight, Device& device) {
  std::vector<std::byte> bytes(static_cast<size_t>(weight.bytes()));
  device.Download(bytes.data(), cuda::AsCuda(weight).tiles().data, bytes.size());
  return bytes;
}

// Stored rows come to the device in pieces that know nothing of tiles and blocks of scales.
TEST_F(CudaLinear, PacksTheSameInPieces) {
  Device& device = *ops().device;
  const auto lane = device.MakeLane(16 << 10);
  ASSERT_TRUE(lane) << lane.error().message();
  for (const WeightFormat format : kFormats)
    for (const BlockScales& scales : ScalesOf(format)) {
      SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " scales " << scales.block_n
                                      << " x " << scales.block_k);
      const Stored stored[] = {MakeWeight(format, 301, 576, 1, 0.003f, scales),
                               MakeWeight(format, 37, 576, 2, 0.05f, scales)};
      const QuantView views[] = {stored[0].view, stored[1].view};
      const auto whole = ops().pack_weight({.parts = views});
      const auto pieces = ops().pack_weight({.parts = views, .lane = lane->get()});
      ASSERT_TRUE(whole && pieces);
      ASSERT_TRUE((*lane)->Finish());
      EXPECT_EQ(PackedBytes(**whole, device), PackedBytes(**pieces, device));
    }
}

TEST_F(CudaLinear, AnErrorInALaterPieceNamesItsRow) {
  Device& device = *ops().device;
  const auto lane = device.MakeLane(16 << 10);
  Stored stored = MakeWeight(WeightFormat::kNvfp4, 300, 576, 1);
  stored.scales[290 * 36 + 7] = std::byte{0x81};
  for (UploadLane* const through : {lane->get(), static_cast<UploadLane*>(nullptr)}) {
    const auto packed = ops().pack_weight({.parts = {&stored.view, 1}, .lane = through});
    ASSERT_FALSE(packed);
    EXPECT_NE(packed.error().message().find("row 290, block 7"), std::string::npos)
        << packed.error().message();
  }
  const Stored wide = MakeWeight(WeightFormat::kF32, 1, 8000, 1);
  EXPECT_EQ(ops().pack_weight({.parts = {&wide.view, 1}, .lane = lane->get()}).error().code(),
            Code::kUnsupported);
}

TEST_F(CudaLinear, MatchesRefForEveryNumberOfTokenTiles) {
  for (const WeightFormat format : kFormats)
    for (const int64_t m : {7, 8, 9, 16, 31, 64, 70}) {
      SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " M=" << m);
      ExpectLikeRef(MakeWeight(format, 50, 416, 3, 0.02f, {DType::kF32, 1, 32}),
                    MakeActivations(m * 416, 4));
      if (HasFatalFailure()) return;
    }
}

// Long K in chunks, more rows than one CTA's, many slices of a row tile.
TEST_F(CudaLinear, MatchesRefAtRealSizes) {
  struct Shape {
    int64_t m, n, k;
  };
  for (const Shape s :
       {Shape{1, 64, 28672}, Shape{8, 48, 14336}, Shape{2, 5000, 512}, Shape{8, 6000, 256},
        Shape{64, 40, 4096}, Shape{20, 2200, 1024}, Shape{9, 150, 28672}, Shape{12, 40000, 64},
        Shape{64, 17000, 64}, Shape{1, 300000, 16}}) {
    SCOPED_TRACE(testing::Message() << s.m << " x " << s.n << " x " << s.k);
    ExpectLikeRef(MakeWeight(WeightFormat::kNvfp4, s.n, s.k, 5, 0.01f),
                  MakeActivations(s.m * s.k, 6));
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaLinear, StackedPartsGiveTheBitsOfEachAlone) {
  Runner gpu(ops());
  for (const WeightFormat format : kFormats) {
    SCOPED_TRACE(WeightFormatName(format));
    const int64_t k = 192;
    const BlockScales scales = {DType::kF32, 1, 64};
    const Stored parts[] = {MakeWeight(format, 37, k, 1, 0.5f, scales),
                            MakeWeight(format, 5, k, 2, 3e-4f, scales),
                            MakeWeight(format, 64, k, 3, 7.0f, scales)};
    const QuantView views[] = {parts[0].view, parts[1].view, parts[2].view};
    const auto x = MakeActivations(4 * k, 4);
    const auto stacked = gpu.Linear(*gpu.Pack(views, ActivationFormat::kBf16), x);
    int64_t row = 0;
    for (const Stored& part : parts) {
      const auto alone = gpu.Linear(*Pack(gpu, part), x);
      for (int64_t token = 0; token < 4; ++token)
        for (int64_t i = 0; i < part.view.n; ++i)
          ASSERT_EQ(stacked[token * 106 + row + i], alone[token * part.view.n + i]);
      row += part.view.n;
    }
  }
}

TEST_F(CudaLinear, StackedPartsMayDifferInTheirScales) {
  Runner gpu(ops());
  Runner ref(RefOps());
  const int64_t k = 192;
  for (const WeightFormat format : {WeightFormat::kFp8, WeightFormat::kInt4, WeightFormat::kInt8}) {
    SCOPED_TRACE(WeightFormatName(format));
    const Stored parts[] = {MakeWeight(format, 37, k, 1, 1, {DType::kF32, 1, 64}),
                            MakeWeight(format, 5, k, 2, 1, {DType::kF32, 1, 96}),
                            MakeWeight(format, 64, k, 3, 1, {DType::kF16, 1, kWhole})};
    const QuantView views[] = {parts[0].view, parts[1].view, parts[2].view};
    const auto x = MakeActivations(4 * k, 4);
    ExpectClose(gpu.Linear(*gpu.Pack(views, ActivationFormat::kBf16), x),
                ref.Linear(*ref.Pack(views, ActivationFormat::kBf16), x), Magnitudes(views, x));
  }
}

TEST_F(CudaLinear, BitsDoNotDependOnTheNumberOfTokens) {
  const int64_t m = 300;
  for (const WeightFormat format : kFormats)
    for (const int64_t k : {320, 4352}) {
      const int64_t n = k == 320 ? 2200 : 40;
      SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " K=" << k);
      const Stored stored = MakeWeight(format, n, k, 11, 0.02f, {DType::kF32, 1, 64});
      const auto x = MakeActivations(m * k, 12);
      Runner gpu(ops());
      const auto weight = Pack(gpu, stored);
      const auto all = gpu.Linear(*weight, x);
      const auto all_bf16 = gpu.LinearBf16(*weight, x);
      for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all_bf16[i], Bf16FromFloat(all[i]));
      for (const int64_t count : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 32, 33, 63, 64, 65, 100}) {
        const int64_t first = (count * 7) % (m - count);
        const std::vector<uint16_t> some(x.begin() + first * k, x.begin() + (first + count) * k);
        const auto y = gpu.Linear(*weight, some);
        ASSERT_EQ(std::memcmp(y.data(), &all[first * n], y.size() * sizeof(float)), 0)
            << count << " tokens from " << first;
      }
    }
}

// One token by a small weight has a kernel of its own, with one to three units of a warp, and by
// one of more than 24 MB another, where warps may share the slices of the last round.
TEST_F(CudaLinear, OneTokenHasTheBitsOfTwo) {
  struct Shape {
    int64_t n, k;
  };
  const Shape small[] = {{40, 2048}, {5000, 2048}, {9210, 2048}, {600, 4096}, {5900, 4096}};
  struct Case {
    WeightFormat format;
    DType scale;
    std::span<const Shape> shapes;
  };
  const Shape large_4_bit[] = {{12304, 4096}, {1680, 28672}, {9700, 5120}, {6230, 8192}};
  const Shape large_bf16[] = {{6200, 2048}, {1700, 8192}, {2880, 4096}},
              large_fp8[] = {{1000, 28736}, {9300, 3072}};
  Runner gpu(ops());
  for (const auto& [format, scale, shapes] : {Case{WeightFormat::kNvfp4, DType::kF32, small},
                                              Case{WeightFormat::kMxfp4, DType::kF32, small},
                                              Case{WeightFormat::kFp8, DType::kF32, small},
                                              Case{WeightFormat::kFp8, DType::kF8E8M0, small},
                                              Case{WeightFormat::kNvfp4, DType::kF32, large_4_bit},
                                              Case{WeightFormat::kMxfp4, DType::kF32, large_4_bit},
                                              Case{WeightFormat::kFp8, DType::kF32, large_fp8},
                                              Case{WeightFormat::kBf16, DType::kF32, large_bf16}})
    for (const auto& [n, k] : shapes) {
      SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " " << n << " x " << k);
      const BlockScales scales = {scale, 1, scale == DType::kF32 ? kWhole : 32};
      const auto weight = Pack(gpu, MakeWeight(format, n, k, 13, 0.02f, scales));
      const auto x = MakeActivations(2 * k, 14), before = MakeActivations(2 * n, 15);
      const std::vector<float> norm_weight = MakeBias(k), bias = MakeBias(n);
      const auto fp32 = gpu.Linear(*weight, x),
                 last = gpu.Linear(*weight, {x.begin() + k, x.end()});
      ASSERT_EQ(std::memcmp(&fp32[n], last.data(), n * sizeof(float)), 0);
      std::vector<std::byte> workspace(ops().linear_workspace(2, k));
      for (const int norm : {-1, 0, 1, 2})
        for (const bool with_bias : {false, true})
          for (const bool add : {false, true}) {
            SCOPED_TRACE(testing::Message() << norm << " " << with_bias << add);
            std::vector<uint16_t> both = before, alone = before;
            const auto multiply = [&](int64_t first, int64_t count, std::vector<uint16_t>& y) {
              LinearParams params = {.x = x.data() + first * k,
                                     .x_stride = k,
                                     .weight = weight.get(),
                                     .bias = with_bias ? bias.data() : nullptr,
                                     .y = y.data() + first * n,
                                     .y_stride = n,
                                     .add = add,
                                     .m = count};
              if (norm >= 0)
                params.norm = {.weight = norm_weight.data(),
                               .eps = 1e-6f,
                               .style = static_cast<NormStyle>(norm)};
              ops().linear({.workspace = workspace.data(), .workspace_bytes = workspace.size()},
                           params);
            };
            multiply(0, 2, both);
            for (const int64_t token : {0, 1}) multiply(token, 1, alone);
            ASSERT_EQ(both, alone);
          }
    }
}

// Whether one launch takes both or each has its own.
TEST_F(CudaLinear, APairHasTheBitsOfEachAlone) {
  struct Shape {
    int64_t n, tail, k;
  };
  Runner gpu(ops());
  for (const auto& [format, tail_format] : {std::pair(WeightFormat::kNvfp4, WeightFormat::kNvfp4),
                                            std::pair(WeightFormat::kMxfp4, WeightFormat::kMxfp4),
                                            std::pair(WeightFormat::kBf16, WeightFormat::kBf16),
                                            std::pair(WeightFormat::kNvfp4, WeightFormat::kBf16)})
    for (const auto& [n, tail, k] :
         {Shape{40, 9, 2048}, Shape{8200, 40, 2048}, Shape{12288, 64, 2048}, Shape{600, 64, 4096},
          Shape{300, 20, 1024}}) {
      const auto weight = Pack(gpu, MakeWeight(format, n, k, 13));
      const auto second = Pack(gpu, MakeWeight(tail_format, tail, k, 16));
      const auto x = MakeActivations(2 * k, 14);
      const std::vector<float> norm_weight = MakeBias(k), bias = MakeBias(n);
      std::vector<std::byte> workspace(ops().linear_workspace(2, k));
      const OpContext context = {.workspace = workspace.data(),
                                 .workspace_bytes = workspace.size()};
      for (const int64_t m : {1, 2})
        for (const bool norms : {false, true})
          for (const bool with_bias : {false, true}) {
            SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " " << n << " + " << tail
                                            << " x " << k << ", " << m << norms << with_bias);
            std::vector<uint16_t> y(m * n), y_alone(m * n);
            std::vector<float> tail_y(m * tail), tail_alone(m * tail);
            LinearParams first = {.x = x.data(),
                                  .x_stride = k,
                                  .weight = weight.get(),
                                  .bias = with_bias ? bias.data() : nullptr,
                                  .y = y_alone.data(),
                                  .y_stride = n,
                                  .m = m};
            if (norms) first.norm = {.weight = norm_weight.data(), .eps = 1e-6f};
            LinearParams other = first;
            other.weight = second.get();
            other.bias = nullptr;
            other.y = nullptr;
            other.y_f32 = tail_alone.data();
            other.y_stride = tail;
            ops().linear(context, first);
            ops().linear(context, other);
            first.y = y.data();
            other.y_f32 = tail_y.data();
            ops().linear_pair(context, {.first = first, .second = other});
            ASSERT_EQ(y, y_alone);
            ASSERT_EQ(std::memcmp(tail_y.data(), tail_alone.data(), tail_y.size() * sizeof(float)),
                      0);
          }
    }
}

TEST_F(CudaLinear, ColumnOrderAndMultipliersPrepareX) {
  for (const WeightFormat format : {WeightFormat::kInt4, WeightFormat::kNvfp4})
    for (const int64_t m : {1, 9, 70}) {
      SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " M=" << m);
      Stored stored = MakeWeight(format, 33, 384, 31, 0.1f, {DType::kF16, 1, 128});
      TransformInputs(stored, format == WeightFormat::kInt4, format == WeightFormat::kNvfp4, 32);
      ExpectLikeRef(stored, MakeActivations(m * 384, 33));
    }
}

TEST_F(CudaLinear, ExtremeScalesKeepTheirPrecision) {
  for (const float global_scale : {1e-12f, 1e-5f, 300.0f})
    for (const float magnitude : {1e-8f, 1.0f, 3e6f})
      for (const uint8_t code : {uint8_t{0x01}, uint8_t{0x07}, uint8_t{0x7E}}) {
        SCOPED_TRACE(testing::Message() << global_scale << " " << magnitude << " " << int{code});
        Stored stored = MakeWeight(WeightFormat::kNvfp4, 16, 128, 51, global_scale);
        for (std::byte& scale : stored.scales) scale = std::byte{code};
        auto x = MakeActivations(128, 52);
        for (uint16_t& value : x) value = Bf16FromFloat(Bf16ToFloat(value) * magnitude);
        ExpectLikeRef(stored, x);
      }
}

TEST_F(CudaLinear, EveryScaleByte) {
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kMxfp4}) {
    const bool nvfp4 = format == WeightFormat::kNvfp4;
    const int first = nvfp4 ? 0 : 40;
    const int count = nvfp4 ? 0x7F : 141;
    Stored stored = MakeWeight(format, count, 64, 61);
    const int64_t blocks = stored.view.scale_bytes() / count;
    for (int64_t i = 0; i < stored.view.scale_bytes(); ++i)
      stored.scales[i] = std::byte(first + static_cast<int>(i / blocks));
    ExpectLikeRef(stored, MakeActivations(64, 62));
  }
}

// One non-zero weight and one non-zero activation: every code times every scale comes out exact,
// through products whose left factor is subnormal in BF16.
TEST_F(CudaLinear, EveryNvfp4ProductIsExact) {
  Runner gpu(ops());
  Stored stored = MakeWeight(WeightFormat::kNvfp4, 0x7F, 16 * 16, 1);
  std::fill(stored.data.begin(), stored.data.end(), std::byte{0});
  for (int row = 0; row < 0x7F; ++row)
    for (int block = 0; block < 16; ++block) {
      stored.scales[row * 16 + block] = std::byte(row);
      const int column = block * 16 + (row + block) % 16;
      stored.data[row * 128 + column / 2] |= std::byte(block << (column % 2 * 4));
    }
  const auto weight = Pack(gpu, stored);
  for (int block = 0; block < 16; ++block) {
    std::vector<uint16_t> x(256, 0);
    for (int i = 0; i < 16; ++i) x[block * 16 + i] = Bf16FromFloat(1.0f);
    const auto y = gpu.Linear(*weight, x);
    for (int row = 0; row < 0x7F; ++row)
      ASSERT_EQ(y[row], DequantizeElement(stored.view, row, block * 16 + (row + block) % 16))
          << "scale " << row << " code " << block;
  }
}

TEST_F(CudaLinear, NanScaleOverZerosIsAZeroBlock) {
  Stored stored = MakeWeight(WeightFormat::kNvfp4, 16, 128, 41);
  stored.scales[3] = std::byte{0x7F};
  for (int i = 0; i < 8; ++i) stored.data[3 * 8 + i] = std::byte{0x80};
  ExpectLikeRef(stored, MakeActivations(128, 42));
}

TEST_F(CudaLinear, NonFiniteActivationsDoNotHide) {
  Runner gpu(ops());
  const Stored stored = MakeWeight(WeightFormat::kNvfp4, 16, 128, 71);
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    auto x = MakeActivations(2 * 128, 72);
    x[77] = Bf16FromFloat(bad);
    const auto y = gpu.Linear(*Pack(gpu, stored), x);
    for (int i = 0; i < 16; ++i) EXPECT_FALSE(std::isfinite(y[i]));
    for (int i = 16; i < 32; ++i) EXPECT_TRUE(std::isfinite(y[i])) << "the other token";
  }
}

TEST_F(CudaLinear, EmbedEqualsTheStoredValues) {
  Runner gpu(ops());
  Runner ref(RefOps());
  for (const WeightFormat format : kFormats)
    for (const BlockScales& scales : ScalesOf(format))
      for (const int64_t k : {32, 96, 576}) {
        SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " K=" << k << " scales "
                                        << scales.block_n << " x " << scales.block_k);
        const Stored parts[] = {MakeWeight(format, 50, k, 81, 0.37f, scales),
                                MakeWeight(format, 30, k, 82, 0.011f, scales)};
        const QuantView views[] = {parts[0].view, parts[1].view};
        const std::vector<int32_t> ids = {0, 79, 49, 50, 17, 17, 3};
        EXPECT_EQ(gpu.Embed(*gpu.Pack(views, ActivationFormat::kBf16), ids),
                  ref.Embed(*ref.Pack(views, ActivationFormat::kBf16), ids));
      }
}

TEST_F(CudaLinear, StridesAndAlignmentOfXAndY) {
  Runner gpu(ops());
  const int64_t n = 40, k = 200, m = 11;
  const Stored stored = MakeWeight(WeightFormat::kInt4, n, k, 21, 1, {DType::kF32, 1, 64});
  const auto weight = Pack(gpu, stored);
  const auto x = MakeActivations(m * k, 22);
  const auto expected = gpu.LinearBf16(*weight, x);
  for (const int64_t x_stride : {k + 1, k + 8})
    for (const int64_t offset : {0, 1, 8}) {
      std::vector<uint16_t> wide(m * x_stride + 8, 0x7FC0);
      const int64_t y_stride = n + 3;
      std::vector<uint16_t> y(m * y_stride, 0x1234);
      for (int64_t t = 0; t < m; ++t) std::copy_n(&x[t * k], k, &wide[offset + t * x_stride]);
      std::vector<std::byte> workspace(ops().linear_workspace(m, k));
      ops().linear({.workspace = workspace.data(), .workspace_bytes = workspace.size()},
                   {.x = wide.data() + offset,
                    .x_stride = x_stride,
                    .weight = weight.get(),
                    .y = y.data(),
                    .y_stride = y_stride,
                    .m = m});
      for (int64_t t = 0; t < m; ++t) {
        for (int64_t i = 0; i < n; ++i) ASSERT_EQ(y[t * y_stride + i], expected[t * n + i]);
        for (int64_t i = n; i < y_stride; ++i) ASSERT_EQ(y[t * y_stride + i], 0x1234);
      }
    }
}

TEST_F(CudaLinear, EveryPlanFits) {
  Runner gpu(ops());
  for (const WeightFormat format : kFormats)
    for (const BlockScales& scales : ScalesOf(format)) {
      const auto weight = Pack(gpu, MakeWeight(format, 16, 8192, 1, 1, scales));
      for (const int row_tiles : {1, 300, 1792, 9496, 20000})
        for (const int m : {1, 2, 4, 8, 16, 32, 64}) {
          cuda::WeightTiles tiles = cuda::AsCuda(*weight).tiles();
          tiles.row_tiles = row_tiles;
          if (m > cuda::DecodeTokensOfLaunch(tiles, m)) continue;
          EXPECT_GE(cuda::DecodeBlocksPerMultiprocessor(tiles, cuda::PlanDecode(tiles, m, false)),
                    1)
              << WeightFormatName(format) << " " << row_tiles << " row tiles, M=" << m;
        }
    }
}

// So that a launch can load its first weights while its predecessor finishes; but large weights
// have their multiprocessors to themselves, where one token takes two CTAs of theirs.
TEST_F(CudaLinear, TwoSmallDecodeLaunchesShareAMultiprocessor) {
  if (!cuda::HasLargeSharedMemory()) GTEST_SKIP() << "99 KB are one launch's";
  constexpr int64_t kMegabyte = int64_t{1} << 20;
  for (const WeightFormat format : kFormats)
    for (const int64_t k : {2048, 4096, 8192, 28672})
      for (const int64_t m : {1, 2, 4, 8}) {
        cuda::WeightTiles tiles;
        Runner gpu(ops());
        const auto weight = Pack(gpu, MakeWeight(format, 16, k, 1));
        tiles = cuda::AsCuda(*weight).tiles();
        const bool in_planes = tiles.k_tiles != tiles.x_tiles;  // FP32
        const auto with_bytes = [&](int64_t bytes) {
          cuda::WeightTiles all = tiles;  // as if it had them
          all.row_tiles = static_cast<int>(bytes / tiles.row_tile_bytes);
          return all;
        };
        const std::vector<float> norm_weight(k);
        for (const bool norms : {false, true}) {
          const int tokens = static_cast<int>(m);
          if (norms && !cuda::NormsInDecode(tiles, {.weight = norm_weight.data()}, tokens))
            continue;
          for (const auto& [all, blocks] :
               {std::pair(with_bytes(20 * kMegabyte), 2),
                std::pair(with_bytes(200 * kMegabyte), tokens == 1 && !in_planes ? 2 : 1)})
            EXPECT_EQ(
                cuda::DecodeBlocksPerMultiprocessor(all, cuda::PlanDecode(all, tokens, norms)),
                blocks)
                << WeightFormatName(format) << " K=" << k << " M=" << m << " norms " << norms;
        }
      }
}

// Whatever the rest of shared memory is used for, there is room for rings that keep memory busy.
TEST_F(CudaLinear, LargeWeightsStreamToOneTokenThroughTwoCtas) {
  if (!cuda::HasLargeSharedMemory()) GTEST_SKIP() << "99 KB are one launch's";
  Runner gpu(ops());
  for (const WeightFormat format :
       {WeightFormat::kNvfp4, WeightFormat::kMxfp4, WeightFormat::kBf16, WeightFormat::kFp8})
    for (const int64_t k : {2048, 4096, 5120, 8192, 28672})
      for (const int64_t n : {2880, 14000, 57344}) {
        const auto weight = Pack(gpu, MakeWeight(format, 16, k, 1));
        cuda::DecodeArgs args = {.weight = cuda::AsCuda(*weight).tiles(), .m = 1};
        args.weight.row_tiles = static_cast<int>(n / cuda::kTileRows);  // as if it had them
        const int64_t least = (format == WeightFormat::kBf16 ? int64_t{16} : int64_t{24}) << 20;
        if (args.weight.row_tiles * args.weight.row_tile_bytes < least) continue;
        const std::vector<float> norm_weight(k);
        for (const bool norms : {false, true}) {
          if (norms && k > 8192) continue;
          if (norms) args.norm.weight = norm_weight.data();
          SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " " << n << " x " << k);
          // Sums of slices of so many row tiles leave no room.
          if (n * k > int64_t{57344} * 8192) {
            EXPECT_FALSE(cuda::StreamTokenTakes(args));
            continue;
          }
          ASSERT_TRUE(cuda::StreamTokenTakes(args));
          EXPECT_EQ(cuda::StreamTokenBlocksPerMultiprocessor(args), 2);
        }
      }
}

// One launch for all heads gives the bits of a linear per head.
TEST_F(CudaLinear, HeadsGiveTheBitsOfALinearPerHead) {
  constexpr int64_t kHeads = 5, kGap = 8;
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kNvfp4, WeightFormat::kFp8})
    for (const int64_t k : {64, 100, 512})
      for (const int64_t t : {1, 3, 9, 100}) {
        if (k % BlockOf(format) != 0) continue;
        SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " K=" << k << " T=" << t);
        const int64_t n = 40, x_stride = kHeads * (k + kGap), y_stride = kHeads * (n + 2) + 1;
        Runner gpu(ops());
        std::vector<std::unique_ptr<PackedWeight>> weights;
        std::vector<const PackedWeight*> heads;
        for (int64_t h = 0; h < kHeads; ++h) {
          weights.push_back(
              Pack(gpu, MakeWeight(format, n, k, static_cast<uint32_t>(10 + h), 0.01f)));
          heads.push_back(weights.back().get());
        }
        const auto prepared = ops().prepare_heads(heads);
        ASSERT_TRUE(prepared.has_value());
        const auto x = MakeActivations(t * x_stride, 7);
        std::vector<uint16_t> y(t * y_stride, 0x1234), expected = y;
        std::vector<std::byte> workspace(ops().head_linear_workspace(1, t, k));
        ops().head_linear({.workspace = workspace.data(), .workspace_bytes = workspace.size()},
                          {.x = x.data(),
                           .x_stride = x_stride,
                           .x_head_stride = k + kGap,
                           .weights = heads,
                           .prepared = prepared->get(),
                           .y = y.data(),
                           .y_stride = y_stride,
                           .y_head_stride = n + 2,
                           .t = t});
        for (int64_t h = 0; h < kHeads; ++h) {
          std::vector<uint16_t> head;
          for (int64_t i = 0; i < t; ++i) {
            const auto from = x.begin() + i * x_stride + h * (k + kGap);
            head.insert(head.end(), from, from + k);
          }
          const auto one = gpu.LinearBf16(*weights[h], head);
          for (int64_t i = 0; i < t; ++i)
            std::copy_n(&one[i * n], n, &expected[i * y_stride + h * (n + 2)]);
        }
        EXPECT_EQ(y, expected);
      }
}

}  // namespace
}  // namespace nibble::kernels
