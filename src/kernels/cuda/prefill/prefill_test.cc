// Many tokens at once have the bits of few: linear by wgmma against the stream of weights, which
// takes up to 8 tokens of weights of these sizes, and against ref/.
#include <cuda_runtime_api.h>
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/cuda/device_facts.h"
#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/prefill/prefill.h"
#include "kernels/cuda/prefill/turns.h"
#include "kernels/cuda/testing/synced_ops.h"
#include "kernels/linear_fixture.h"

namespace nibble::kernels {
namespace {

constexpr WeightFormat kFormats[] = {
    WeightFormat::kNvfp4, WeightFormat::kMxfp4, WeightFormat::kBf16, WeightFormat::kFp8,
    WeightFormat::kF16,   WeightFormat::kF32,   WeightFormat::kInt4, WeightFormat::kInt8};

// Column groups of 64, 128 and 256, with zero points and without.
std::vector<BlockScales> ScalesOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp8:
      return {
          {DType::kF32}, {DType::kF8E8M0, 1, 32}, {DType::kBF16, 128, 128}, {DType::kF32, 1, 64}};
    case WeightFormat::kInt4:
      return {{DType::kF16, 1, 128}, {DType::kF16, 1, 64, true}, {DType::kBF16, 1, 256}};
    case WeightFormat::kInt8:
      return {{DType::kF16}, {DType::kF16, 1, 128, true}, {DType::kF32, 1, 64}};
    default:
      return {{}};
  }
}

class CudaPrefill : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::SyncedOps() == nullptr) GTEST_SKIP() << "no GPU";
    if (!cuda::HasTurns(cuda::TileFormat::kNvfp4)) GTEST_SKIP() << "a GPU without wgmma";
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
    ASSERT_TRUE(cuda::HasPrefill(cuda::AsCuda(weight).tiles()));
    const auto many = Linear<T>(weight, x, x_gap, y_gap, bias, false);
    const auto few = Linear<T>(weight, x, x_gap, y_gap, bias, true);
    ASSERT_EQ(std::memcmp(many.data(), few.data(), many.size() * sizeof(T)), 0);
  }

  // Of all plans of turns, for a weight that has them.
  void ExpectBitsOfEveryPlan(const PackedWeight& weight, int64_t m) const {
    const cuda::WeightTiles& tiles = cuda::AsCuda(weight).tiles();
    const int64_t n = weight.n(), k = weight.k();
    const auto x = MakeActivations(m * k, 7);
    const auto few = Linear<uint16_t>(weight, x, 0, 0, {}, true);
    std::vector<std::byte> memory(cuda::PreparedBytes(128, k) + cuda::kPieceBytes);
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    std::byte* const aligned =
        memory.data() + (cuda::kPieceBytes - address % cuda::kPieceBytes) % cuda::kPieceBytes;
    for (const cuda::TurnPlan& plan : cuda::TurnPlans(tiles, m)) {
      SCOPED_TRACE(testing::Message() << "M " << m << ", N " << n << ", K " << k << ", "
                                      << plan.tokens << " tokens, " << plan.groups << " groups, "
                                      << plan.row_ctas << " x " << plan.splits << " CTAs");
      std::vector<uint16_t> y(m * n, 0xFFFF);
      const cuda::PreparedTokens prepared = cuda::PrepareTokens(
          {.x = x.data(), .x_stride = k, .m = m, .k = k, .part_tokens = plan.tokens}, aligned,
          ops().device->stream());
      cuda::LaunchTurns({.weight = tiles, .x = prepared, .y = y.data(), .y_stride = n, .m = m},
                        plan, ops().device->stream());
      ops().device->Synchronize();
      ASSERT_EQ(ops().device->failure(), "");
      ASSERT_EQ(y, few);
    }
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

// However a launch for up to 128 tokens is cut; by pairs of CTAs also where the last round of
// slices has few of them, and where it has more.
TEST_F(CudaPrefill, EveryPlanOfTurnsHasTheBitsOfFewTokens) {
  Runner gpu(ops());
  uint32_t seed = 1;
  for (const WeightFormat format : kFormats)
    for (const BlockScales& scales : ScalesOf(format))
      for (const auto& [n, k] : {std::pair<int64_t, int64_t>{40, 192},
                                 {3000, 1120},
                                 {600, 5440},
                                 {200, 4192},
                                 {18000, 576}}) {
        SCOPED_TRACE(WeightFormatName(format));
        const Stored stored = MakeWeight(format, n, k, ++seed, 0.003f, scales);
        const auto weight = gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16);
        if (!cuda::HasTurns(cuda::AsCuda(*weight).tiles().format)) continue;
        for (const int64_t m : {5, 16, 27, 64, 100}) {
          ExpectBitsOfEveryPlan(*weight, m);
          if (HasFatalFailure()) return;
        }
      }
}

// Shares of three and five row groups, where in the last pass only one has something to do.
TEST_F(CudaPrefill, PassesWithoutRowsOfAGroupHaveTheBitsOfFewTokens) {
  Runner gpu(ops());
  const int64_t groups_of_all = int64_t{64} * cuda::CurrentDevice().multiprocessors;
  for (const int64_t groups : {3, 5}) {
    const Stored stored = MakeWeight(WeightFormat::kNvfp4, groups * groups_of_all, 576, 1, 0.003f);
    const auto weight = gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16);
    for (const int64_t m : {16, 32, 64}) {
      ExpectBitsOfEveryPlan(*weight, m);
      if (HasFatalFailure()) return;
    }
  }
}

// Whatever tiles a product is cut into, two or three per SM, with whole slices of K and with a
// rest.
TEST_F(CudaPrefill, EveryShapeOfTilesHasTheBitsOfFewTokens) {
  Runner gpu(ops());
  constexpr int64_t kM = 700, kN = 5000;
  uint32_t seed = 1;
  for (const WeightFormat format : kFormats)
    for (const BlockScales& scales : ScalesOf(format))
      for (const int64_t k : {1024, 608}) {
        const Stored stored = MakeWeight(format, kN, k, ++seed, 0.003f, scales);
        const auto weight = gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16);
        const cuda::WeightTiles& tiles = cuda::AsCuda(*weight).tiles();
        const auto x = MakeActivations(kM * k, 7);
        const auto few = Linear<uint16_t>(*weight, x, 0, 0, {}, true);
        std::vector<std::byte> memory(cuda::PreparedBytes(kM, k) + cuda::kPieceBytes);
        const auto address = reinterpret_cast<uintptr_t>(memory.data());
        std::byte* const aligned =
            memory.data() + (cuda::kPieceBytes - address % cuda::kPieceBytes) % cuda::kPieceBytes;
        const cuda::PreparedTokens prepared = cuda::PrepareTokens(
            {.x = x.data(), .x_stride = k, .m = kM, .k = k}, aligned, ops().device->stream());
        for (int shape = 0; shape < cuda::PrefillShapes(tiles.format); ++shape) {
          SCOPED_TRACE(testing::Message()
                       << WeightFormatName(format) << " K " << k << ", shape " << shape);
          std::vector<uint16_t> y(kM * kN, 0xFFFF);
          cuda::LaunchPrefill(
              {.weight = tiles, .x = prepared, .y = y.data(), .y_stride = kN, .m = kM},
              ops().device->stream(), shape);
          ops().device->Synchronize();
          ASSERT_EQ(ops().device->failure(), "");
          ASSERT_EQ(y, few);
        }
      }
}

// More tiles than an SM takes, bands of tokens, long K, tokens that are laid out beside the tiles.
TEST_F(CudaPrefill, HasTheBitsOfFewTokensAtRealSizes) {
  Runner gpu(ops());
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kBf16, WeightFormat::kInt4,
                                    WeightFormat::kInt8, WeightFormat::kFp8})
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{1000, 4096, 1024},
                                  {2600, 520, 512},
                                  {4403, 2064, 1168},
                                  {130, 200, 14336},
                                  {200, 20000, 256},
                                  {20, 20000, 512},
                                  {12, 9000, 1104},
                                  {64, 4096, 4096},
                                  {40, 20000, 512},
                                  {2049, 256, 1024}}) {
      const Stored stored = MakeWeight(format, n, k, 3, 0.01f, {DType::kBF16, 128, 128});
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
    for (const BlockScales& scales : ScalesOf(format)) {
      const Stored stored = MakeWeight(format, 150, 608, 3, 0.02f, scales);
      const auto x = MakeActivations(70 * 608, 4);
      const auto weight = gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16);
      ExpectClose(Linear<float>(*weight, x, 0, 0, {}, false),
                  ref.Linear(*ref.Pack({&stored.view, 1}, ActivationFormat::kBf16), x),
                  Magnitudes({&stored.view, 1}, x));
    }
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

// ---- Times

// Microseconds of a launch, of `turns` behind each other.
class Stopwatch {
 public:
  explicit Stopwatch(const OpTable& ops)
      : stream_(static_cast<cudaStream_t>(ops.device->stream())) {
    cudaEventCreate(&begin_);
    cudaEventCreate(&end_);
  }
  template <typename Launch>
  double Time(int turns, const Launch& launch) const {
    launch();
    cudaEventRecord(begin_, stream_);
    for (int turn = 0; turn < turns; ++turn) launch();
    cudaEventRecord(end_, stream_);
    cudaEventSynchronize(end_);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin_, end_);
    return ms * 1e3 / turns;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_;
  cudaEvent_t end_;
};

constexpr WeightFormat kTimedFormats[] = {WeightFormat::kNvfp4, WeightFormat::kBf16,
                                          WeightFormat::kInt4, WeightFormat::kInt8,
                                          WeightFormat::kFp8};
constexpr BlockScales kTimedScales = {DType::kBF16, 128, 128};

// What kShapes of prefill.cu says: microseconds per k-tile of a tile, of every kernel.
TEST_F(CudaPrefill, DISABLED_BenchShapes) {
  constexpr int64_t kN = 132 * 128, kK = 4096, kTokens[] = {128, 64, 128, 32};
  Runner gpu(ops());
  const Stopwatch watch(ops());
  for (const WeightFormat format : kTimedFormats) {
    const Stored stored = MakeWeight(format, kN, kK, 3, 0.01f, kTimedScales);
    const auto weight = gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16);
    std::string line(WeightFormatName(format));
    for (int shape = 0; shape < 4; ++shape) {
      const int64_t m = kTokens[shape] * (shape == 2 ? 2 : 4);  // four tiles for every SM
      const auto x = MakeActivations(m * kK, 7);
      Buffer memory =
          std::move(*Buffer::Allocate(cuda::PreparedBytes(m, kK) + 1024, *ops().device));
      Buffer y = std::move(*Buffer::Allocate(m * kN * 2, *ops().device));
      std::byte* const aligned =
          memory.data() + (1024 - reinterpret_cast<uintptr_t>(memory.data()) % 1024) % 1024;
      const auto tokens = cuda::PrepareTokens({.x = x.data(), .x_stride = kK, .m = m, .k = kK},
                                              aligned, ops().device->stream());
      const cuda::PrefillParams params = {.weight = cuda::AsCuda(*weight).tiles(),
                                          .x = tokens,
                                          .y = y.as<uint16_t>(),
                                          .y_stride = kN,
                                          .m = m};
      const double us =
          watch.Time(20, [&] { cuda::LaunchPrefill(params, ops().device->stream(), shape); });
      line += fmt::format("  shape {}: {:.3f} us, {:.0f} TFLOP/s", shape, us / 4 / (kK / 64),
                          2e-6 * static_cast<double>(m * kN * kK) / us);
    }
    fmt::print("{}\n", line);
    ASSERT_EQ(ops().device->failure(), "");
  }
}

// 2,048 tokens at once, and 64 at a time: weights by groups have another kernel then.
TEST_F(CudaPrefill, DISABLED_BenchPrompts) {
  constexpr int64_t kM = 2048;
  Runner gpu(ops());
  const Stopwatch watch(ops());
  for (const WeightFormat format : kTimedFormats)
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{4096, 4096}, {16384, 4096}}) {
      const Stored stored = MakeWeight(format, n, k, 3, 0.01f, kTimedScales);
      const auto weight = gpu.Pack({&stored.view, 1}, ActivationFormat::kBf16);
      const auto host_x = MakeActivations(kM * k, 7);
      Buffer x = std::move(*Buffer::Allocate(kM * k * 2, *ops().device));
      Buffer y = std::move(*Buffer::Allocate(kM * n * 2, *ops().device));
      ops().device->Upload(x.data(), host_x.data(), kM * k * 2);
      const size_t bytes = ops().linear_workspace(kM, k);
      Buffer workspace = std::move(*Buffer::Allocate(bytes, *ops().device));
      const OpContext context = {.stream = ops().device->stream(),
                                 .workspace = workspace.data(),
                                 .workspace_bytes = bytes};
      LinearParams params = {.x = x.as<uint16_t>(),
                             .x_stride = k,
                             .weight = weight.get(),
                             .y = y.as<uint16_t>(),
                             .y_stride = n,
                             .m = kM};
      const double all = watch.Time(10, [&] { cuda::Linear(context, params); });
      params.m = 64;
      const double few = watch.Time(40, [&] { cuda::Linear(context, params); }) * (kM / 64);
      const double flops = 2e-6 * static_cast<double>(kM * n * k);
      fmt::print("{:6} {} x {}: {:7.1f} us, {:4.0f} TFLOP/s; by 64 {:7.1f} us, {:4.0f} TFLOP/s\n",
                 WeightFormatName(format), n, k, all, flops / all, few, flops / few);
      ASSERT_EQ(ops().device->failure(), "");
    }
}

}  // namespace
}  // namespace nibble::kernels
