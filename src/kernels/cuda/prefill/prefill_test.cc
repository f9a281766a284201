// Many tokens at once have the bits of few: linear by wgmma against the stream of weights, which
// takes up to 8 tokens whatever the weight, and against ref/.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/prefill/prefill.h"
#include "kernels/cuda/testing/synced_ops.h"
#include "kernels/linear_fixture.h"

namespace nibble::kernels {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kNvfp4, WeightFormat::kMxfp4,
                                     WeightFormat::kBf16,  WeightFormat::kFp8,
                                     WeightFormat::kF16,   WeightFormat::kF32};

std::vector<BlockScales> ScalesOf(WeightFormat format) {
  if (format == WeightFormat::kFp8) return {{DType::kF32}, {DType::kF8E8M0, 1, 32}};
  return {{}};
}

class CudaPrefill : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::SyncedOps() == nullptr) GTEST_SKIP() << "no GPU";
    if (!cuda::HasPrefill(cuda::TileFormat::kNvfp4)) GTEST_SKIP() << "a GPU without wgmma";
  }
  const OpTable& ops() const { return *cuda::SyncedOps(); }

  // The product with gaps between rows; NaN where nothing was written. `few`: a few tokens at a
  // time, by the op.
  template <typename T>
  std::vector<T> Linear(const PackedWeight& weight, const std::vector<uint16_t>& x, int64_t x_gap,
                        int64_t y_gap, const std::vector<float>& bias, bool few) const {
    const int64_t x_stride = weight.k() + x_gap, y_stride = weight.n() + y_gap;
    const int64_t m = static_cast<int64_t>(x.size()) / x_stride;
    const int64_t at_once = few ? 8 : m;
    std::vector<T> y(m * y_stride);
    std::memset(y.data(), 0xFF, y.size() * sizeof(T));
    const size_t bytes = ops().linear_workspace(at_once, weight.k());
    Buffer workspace = std::move(*Buffer::Allocate(bytes, *ops().device));
    const OpContext context = {
        .stream = ops().device->stream(), .workspace = workspace.data(), .workspace_bytes = bytes};
    for (int64_t token = 0; token < m; token += at_once) {
      LinearParams params = {.x = x.data() + token * x_stride,
                             .x_stride = x_stride,
                             .weight = &weight,
                             .bias = bias.empty() ? nullptr : bias.data(),
                             .y_stride = y_stride,
                             .m = std::min(at_once, m - token)};
      if constexpr (sizeof(T) == 4) {
        params.y_f32 = y.data() + token * y_stride;
      } else {
        params.y = y.data() + token * y_stride;
      }
      if (few) {
        ops().linear(context, params);
      } else {
        cuda::Prefill(context, params);
      }
    }
    ops().device->Synchronize();
    EXPECT_EQ(ops().device->failure(), "");
    return y;
  }

  template <typename T>
  void ExpectBitsOfFew(const PackedWeight& weight, int64_t m, int64_t x_gap, int64_t y_gap,
                       bool with_bias) const {
    SCOPED_TRACE(testing::Message()
                 << "M " << m << ", N " << weight.n() << ", K " << weight.k() << ", gaps " << x_gap
                 << " and " << y_gap << ", " << sizeof(T) << " bytes");
    const auto x = MakeActivations(m * (weight.k() + x_gap), 7);
    std::vector<float> bias(with_bias ? weight.n() : 0);
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i % 7) - 2.5f;
    const auto many = Linear<T>(weight, x, x_gap, y_gap, bias, false);
    const auto few = Linear<T>(weight, x, x_gap, y_gap, bias, true);
    ASSERT_EQ(std::memcmp(many.data(), few.data(), many.size() * sizeof(T)), 0);
  }
};

TEST_F(CudaPrefill, HasTheBitsOfFewTokens) {
  Runner gpu(ops());
  uint32_t seed = 1;
  for (const WeightFormat format : kFormats)
    for (const BlockScales& scales : ScalesOf(format))
      for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 64}, {333, 1056}, {136, 2304}}) {
        SCOPED_TRACE(WeightFormatName(format));
        const Stored stored = MakeWeight(format, n, k, ++seed, 0.003f, scales);
        const auto weight = gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16);
        for (const int64_t m : {30, 65, 100, 128, 300}) {
          ExpectBitsOfFew<float>(*weight, m, m % 3, 0, m == 100);
          ExpectBitsOfFew<uint16_t>(*weight, m, 0, m % 5 + (n == 136 ? 0 : 1), m == 128);
          if (HasFatalFailure()) return;
        }
      }
}

// More tiles than an SM takes, bands of tokens, long K.
TEST_F(CudaPrefill, HasTheBitsOfFewTokensAtRealSizes) {
  Runner gpu(ops());
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kBf16})
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{1000, 4096, 1024},
                                  {2600, 520, 512},
                                  {130, 200, 14336},
                                  {200, 20000, 256},
                                  {20, 20000, 512},
                                  {12, 9000, 1104},
                                  {64, 4096, 4096},
                                  {40, 20000, 512}}) {
      const Stored stored = MakeWeight(format, n, k, 3, 0.01f);
      const auto weight = gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16);
      ExpectBitsOfFew<uint16_t>(*weight, m, 0, 0, false);
      if (HasFatalFailure()) return;
    }
}

// Position 16 j + p of a row is column 16 q + 4 j + p mod 2, plus 2 in the upper half of p.
TEST_F(CudaPrefill, PermutedRowsAreInTheOrderOfAtoms) {
  for (const auto& [m, k] : {std::pair<int64_t, int64_t>{1, 64}, {19, 2048}, {9, 328}, {5, 99}}) {
    SCOPED_TRACE(testing::Message() << "M " << m << ", K " << k);
    const auto x = MakeActivations(m * k, 3);
    const int64_t padded = (k + 63) / 64 * 64;
    std::vector<uint16_t> got(m * padded, 0x1234), expected(m * padded);
    for (int64_t t = 0; t < m; ++t)
      for (int64_t i = 0; i < padded; ++i) {
        const int64_t j = i % 64 / 16, p = i % 16, q = p / 2 % 4;
        const int64_t column = i / 64 * 64 + 16 * q + 4 * j + p % 2 + p / 8 * 2;
        expected[t * padded + i] = column < k ? x[t * k + column] : 0;
      }
    cuda::PermuteRows({.x = x.data(), .x_stride = k, .m = m, .k = k}, got.data(),
                      ops().device->stream());
    ops().device->Synchronize();
    ASSERT_EQ(ops().device->failure(), "");
    ASSERT_EQ(got, expected);
  }
}

TEST_F(CudaPrefill, MatchesRef) {
  Runner gpu(ops());
  Runner ref(RefOps());
  for (const WeightFormat format : kFormats) {
    SCOPED_TRACE(WeightFormatName(format));
    const Stored stored = MakeWeight(format, 150, 608, 3, 0.02f);
    const auto x = MakeActivations(70 * 608, 4);
    const auto weight = gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16);
    ExpectClose(Linear<float>(*weight, x, 0, 0, {}, false),
                ref.Linear(*ref.Pack({&stored.view, 1}, ActivationFormat::kBf16), x),
                Magnitudes({&stored.view, 1}, x));
  }
}

TEST_F(CudaPrefill, TransformsActivationsFirst) {
  Runner gpu(ops());
  Stored stored = MakeWeight(WeightFormat::kNvfp4, 100, 320, 3, 0.02f);
  stored.input_multiplier.resize(320);
  stored.column_order.resize(320);
  for (int i = 0; i < 320; ++i) {
    stored.input_multiplier[i] = 0.5f + static_cast<float>(i % 11);
    stored.column_order[i] = (i * 7 + 3) % 320;
  }
  stored.view.input_multiplier = stored.input_multiplier.data();
  stored.view.column_order = stored.column_order.data();
  ExpectBitsOfFew<float>(*gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16), 200, 0, 0, true);
}

}  // namespace
}  // namespace nibble::kernels
