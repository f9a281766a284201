// The order of W4A4's operands, and the whole pipeline on the GPU that is there: on SM 12.x with
// the block-scaled MMA, on compute capability 9.0 with its emulation. Bits are compared with sums
// that know nothing of fragments.
#include "kernels/cuda/w4a4/w4a4.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/cuda/ptx/block_scaled.h"
#include "kernels/cuda/testing/synced_ops.h"
#include "kernels/cuda/w4a4/order.h"
#include "kernels/cuda/w4a4/tokens.h"
#include "kernels/linear_fixture.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels {
namespace {

namespace w4a4 = cuda::w4a4;

// ---- The order

TEST(W4a4Order, EveryColumnMeetsItsBlocksScale) {
  std::array<int, 64> seen = {};
  for (int kk = 0; kk < 64; ++kk) {
    const int column = w4a4::TileColumn(kk);
    ++seen[column];
    EXPECT_EQ(column / 16, w4a4::GroupBlock(kk / cuda::ptx::kScaleGroup)) << kk;
  }
  EXPECT_EQ(std::ranges::count(seen, 1), 64);
  for (int j = 0; j < 4; ++j) EXPECT_EQ(w4a4::BlockGroup(w4a4::GroupBlock(j)), j);
}

TEST(W4a4Order, BlocksOfWeightsBecomeNibbles) {
  std::mt19937 random(1);
  for (int turn = 0; turn < 10000; ++turn) {
    const uint32_t block[2] = {static_cast<uint32_t>(random()), static_cast<uint32_t>(random())};
    const w4a4::BlockNibbles nibbles = w4a4::Nibbles(block);
    for (int i = 0; i < 16; ++i) {
      const int column = i / 8 * 8 + w4a4::NibbleColumn(i % 8);
      ASSERT_EQ(nibbles.words[i / 8] >> (4 * (i % 8)) & 15u, cuda::E2M1At(block, column))
          << block[0] << ", " << block[1] << ", nibble " << i;
    }
  }
}

TEST(W4a4Order, PackedScalesComeBack) {
  for (uint32_t code = 0; code < 0x7F; ++code) {
    uint32_t packed = 0;
    if (code != 0) {
      const auto bits = std::bit_cast<uint32_t>(E4M3ToFloat(static_cast<uint8_t>(code)));
      packed = ((bits >> 23) - 127 + 10) << 3 | (bits >> 20 & 7u);
    }
    for (const uint32_t others : {0u, 0x48484848u, 0x0A080848u})
      for (int i = 0; i < 32; i += 8) {
        const uint32_t word = (others & ~(255u << i)) | packed << i;
        EXPECT_EQ(w4a4::Ue4m3Scales(word) >> i & 255u, code);
      }
  }
}

// ---- The pipeline

struct Quantized {
  std::vector<uint8_t> codes;   // (M, K)
  std::vector<uint8_t> scales;  // (M, K / 16)
};

Quantized Quantize(const std::vector<uint16_t>& x, float input_scale) {
  const float inverse = 1.0f / input_scale;
  Quantized q;
  for (size_t block = 0; block < x.size(); block += kNvfp4Block) {
    float values[kNvfp4Block];
    for (int i = 0; i < kNvfp4Block; ++i) values[i] = Bf16ToFloat(x[block + i]);
    const uint8_t scale = Nvfp4ActivationScale(MaxMagnitude(values, kNvfp4Block), inverse);
    q.scales.push_back(scale);
    for (const float value : values)
      q.codes.push_back(E2M1FromFloat(value * Nvfp4ActivationMultiplier(scale, inverse)));
  }
  return q;
}

// One output by k-tiles in ascending order, a block-scaled sum each.
float Product(const Stored& w, int64_t row, const Quantized& x, int64_t token) {
  const int64_t k = w.view.k;
  float sum = 0.0f;
  for (int64_t tile = 0; tile < k; tile += 64) {
    int dots[4] = {};
    uint32_t scales_w = 0, scales_x = 0;
    for (int64_t column = tile; column < std::min(k, tile + 64); ++column) {
      const int block = static_cast<int>(column - tile) / 16;
      const auto* codes = reinterpret_cast<const uint8_t*>(w.data.data()) + row * k / 2;
      dots[block] +=
          E2M1Doubled(UnpackE2M1(codes, column)) * E2M1Doubled(x.codes[token * k + column]);
      if (column % 16 != 0) continue;
      scales_w |= static_cast<uint32_t>(w.scales[(row * k + column) / 16]) << (8 * block);
      scales_x |= static_cast<uint32_t>(x.scales[(token * k + column) / 16]) << (8 * block);
    }
    sum = cuda::ptx::BlockScaledSum(sum, dots, scales_w, scales_x);
  }
  return sum * (w.view.global_scale * 256.0f * (w.view.input_scale * 0x1p-8f));
}

class CudaW4a4 : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::SyncedOps() == nullptr || !(cuda::HasW4a4() || cuda::HasEmulatedW4a4()))
      GTEST_SKIP() << "no GPU that multiplies FP4 or emulates it";
  }

  static Stored MakeStored(int64_t n, int64_t k, uint32_t seed) {
    Stored stored = MakeWeight(WeightFormat::kNvfp4, n, k, seed, 0.0003f);
    stored.view.input_scale = 0.0017f;
    return stored;
  }

  struct Outputs {
    std::vector<float> f32;
    std::vector<uint16_t> bf16;
  };
  static void Call(const PackedWeight& weight, const std::vector<uint16_t>& x,
                   const std::vector<float>& bias, uint16_t* y, float* y_f32) {
    Device& device = *cuda::SyncedOps()->device;
    const int64_t m = static_cast<int64_t>(x.size()) / weight.k();
    const size_t bytes = cuda::LinearW4a4Workspace(m, weight.k());
    Buffer workspace = std::move(*Buffer::Allocate(bytes, device));
    cuda::LinearW4a4(
        {.stream = device.stream(), .workspace = workspace.data(), .workspace_bytes = bytes},
        {.x = x.data(),
         .x_stride = weight.k(),
         .weight = &weight,
         .bias = bias.empty() ? nullptr : bias.data(),
         .y = y,
         .y_f32 = y_f32,
         .y_stride = weight.n(),
         .m = m});
    device.Synchronize();
    ASSERT_EQ(device.failure(), "");
  }
  static Outputs Run(const PackedWeight& weight, const std::vector<uint16_t>& x,
                     const std::vector<float>& bias = {}) {
    const int64_t size = static_cast<int64_t>(x.size()) / weight.k() * weight.n();
    Outputs y = {std::vector<float>(size), std::vector<uint16_t>(size)};
    Call(weight, x, bias, nullptr, y.f32.data());
    Call(weight, x, bias, y.bf16.data(), nullptr);
    return y;
  }
  static std::unique_ptr<PackedWeight> Pack(std::span<const QuantView> parts) {
    return Runner(*cuda::SyncedOps()).Pack(parts, ActivationFormat::kBf16);
  }
  // RefOps' product, and how far from it FP32 sums may be.
  static void ExpectLikeRef(std::span<const QuantView> parts, const std::vector<uint16_t>& x,
                            const std::vector<float>& bias = {}) {
    const int64_t k = parts[0].k;
    const int64_t m = static_cast<int64_t>(x.size()) / k;
    const auto packed = Pack(parts);
    const auto reference = Runner(RefOps()).Pack(parts, ActivationFormat::kBf16);
    EXPECT_EQ(packed->input_scale(), reference->input_scale());
    std::vector<float> expected(m * packed->n());
    RefOps().linear_w4a4({}, {.x = x.data(),
                              .x_stride = k,
                              .weight = reference.get(),
                              .bias = bias.empty() ? nullptr : bias.data(),
                              .y_f32 = expected.data(),
                              .y_stride = packed->n(),
                              .m = m});
    std::vector<float> magnitudes = Magnitudes(parts, Transformed(parts[0], x));
    for (size_t i = 0; i < magnitudes.size(); ++i)
      magnitudes[i] =
          1.5f * magnitudes[i] + (bias.empty() ? 0.0f : std::fabs(bias[i % bias.size()]));
    ExpectClose(Run(*packed, x, bias).f32, expected, magnitudes);
  }
};

TEST_F(CudaW4a4, ActivationsHaveTheRulesCodes) {
  constexpr int64_t kM = 21, kK = 304;
  constexpr float kInputScale = 0.0017f;
  std::vector<uint16_t> x = MakeActivations(kM * kK, 3);
  // A block of zeros, one that its scale loses, infinities, borders between codes.
  std::fill_n(x.begin(), 16, uint16_t{0});
  std::fill_n(x.begin() + 16, 16, Bf16FromFloat(1e-9f));
  x[40] = 0x7F80;
  x[60] = 0xFF80;
  for (int i = 0; i < 16; ++i) x[64 + i] = Bf16FromFloat(0.25f * static_cast<float>(i - 8));
  const Quantized expected = Quantize(x, kInputScale);

  Device& device = *cuda::SyncedOps()->device;
  std::vector<std::byte> out(w4a4::TokenBytes(kM, kK));
  w4a4::QuantizeTokens(
      {.x = x.data(), .x_stride = kK, .m = kM, .k = kK, .inverse_scale = 1.0f / kInputScale},
      out.data(), device.stream());
  device.Synchronize();
  const int64_t groups = w4a4::Groups(kM);
  for (int64_t token = 0; token < groups * 8; ++token)
    for (int64_t column = 0; column < w4a4::Slices(kK) * 256; column += 64) {
      const int u = static_cast<int>(column / 64 % 4), g = static_cast<int>(token % 8);
      const std::byte* piece = out.data() + (column / 256 * groups + token / 8) * w4a4::kPieceBytes;
      for (int kk = 0; kk < 64; ++kk) {
        const int at = w4a4::CodeOffset(u, 4 * g + kk % 32 / 8, kk / 32) + kk % 8 / 2;
        const int code = static_cast<int>(piece[at]) >> (4 * (kk % 2)) & 15;
        const int64_t of = column + w4a4::TileColumn(kk);
        const bool there = token < kM && of < kK;
        ASSERT_EQ(code, there ? expected.codes[token * kK + of] : 0) << token << ", " << of;
      }
      for (int j = 0; j < 4; ++j) {
        const int64_t of = column + 16 * w4a4::GroupBlock(j);
        const bool there = token < kM && of < kK;
        ASSERT_EQ(static_cast<int>(piece[w4a4::ScaleOffset(u, g) + j]),
                  there ? expected.scales[(token * kK + of) / 16] : 0);
      }
    }
}

TEST_F(CudaW4a4, HasTheBitsOfTheOrderedSums) {
  struct Shape {
    int64_t m, n, k;
  };
  for (const auto [m, n, k] : {Shape{1, 16, 64}, {9, 40, 320}, {130, 200, 1040}, {300, 96, 4096}}) {
    const Stored stored = MakeStored(n, k, static_cast<uint32_t>(n + k));
    const std::vector<uint16_t> x = MakeActivations(m * k, static_cast<uint32_t>(m));
    const Quantized quantized = Quantize(x, stored.view.input_scale);
    const Outputs y = Run(*Pack({&stored.view, 1}), x);
    std::mt19937 random(4);
    for (int turn = 0; turn < 3000; ++turn) {
      const auto token = static_cast<int64_t>(random() % m),
                 row = static_cast<int64_t>(random() % n);
      const float expected = Product(stored, row, quantized, token);
      ASSERT_EQ(y.f32[token * n + row], expected) << m << " tokens, " << n << " x " << k;
      ASSERT_EQ(y.bf16[token * n + row], Bf16FromFloat(expected));
    }
  }
}

TEST_F(CudaW4a4, MatchesRef) {
  const Stored q = MakeStored(100, 528, 1);
  Stored k = MakeStored(24, 528, 2);
  k.view.input_scale = 0.0021f;
  k.view.global_scale = 0.0007f;
  std::vector<float> bias(124);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i) - 50.0f;
  ExpectLikeRef(std::vector<QuantView>{q.view, k.view}, MakeActivations(150 * 528, 3), bias);
}

TEST_F(CudaW4a4, TransformsActivationsFirst) {
  Stored stored = MakeStored(64, 272, 7);
  TransformInputs(stored, true, true, 8);
  ExpectLikeRef({&stored.view, 1}, MakeActivations(33 * 272, 9));
}

TEST_F(CudaW4a4, OnlyWeightsWithAnInputScaleTakePart) {
  Stored with = MakeStored(16, 64, 1);
  Stored without = MakeStored(16, 64, 2);
  without.view.input_scale = 0.0f;
  EXPECT_EQ(Pack({&with.view, 1})->input_scale(), 0.0017f);
  EXPECT_EQ(Pack(std::vector<QuantView>{with.view, without.view})->input_scale(), 0.0f);
}

TEST_F(CudaW4a4, NormsItsInputAndAddsToItsOutput) {
  constexpr int64_t kM = 70, kN = 132, kK = 320;
  const Stored stored = MakeStored(kN, kK, 5);
  const auto weight = Pack({&stored.view, 1});
  const std::vector<uint16_t> x = MakeActivations(kM * kK, 6);
  std::vector<float> norm(kK);
  for (int64_t i = 0; i < kK; ++i) norm[i] = 0.5f + 0.01f * static_cast<float>(i % 90);
  Device& device = *cuda::SyncedOps()->device;
  const size_t bytes = cuda::LinearW4a4Workspace(kM, kK);
  Buffer workspace = std::move(*Buffer::Allocate(bytes, device));
  std::vector<uint16_t> y = MakeActivations(kM * kN, 7);
  std::vector<uint16_t> expected = y;
  cuda::LinearW4a4(
      {.stream = device.stream(), .workspace = workspace.data(), .workspace_bytes = bytes},
      {.x = x.data(),
       .x_stride = kK,
       .norm = {.weight = norm.data(), .eps = 1e-5f},
       .weight = weight.get(),
       .y = y.data(),
       .y_stride = kN,
       .add = true,
       .m = kM});
  device.Synchronize();

  std::vector<uint16_t> normed = x, scratch = x;
  cuda::SyncedOps()->rms_norm({}, {.x = scratch.data(),
                                   .weight = norm.data(),
                                   .out = normed.data(),
                                   .t = kM,
                                   .d = kK,
                                   .eps = 1e-5f});
  const std::vector<uint16_t> result = Run(*weight, normed).bf16;
  for (size_t i = 0; i < y.size(); ++i)
    ASSERT_EQ(y[i], Bf16FromFloat(Bf16ToFloat(expected[i]) + Bf16ToFloat(result[i]))) << i;
}

// On the machine that the kernel is for; on others the emulation's time means nothing.
TEST_F(CudaW4a4, DISABLED_Bench) {
  if (!cuda::HasW4a4()) GTEST_SKIP() << "no GPU that multiplies FP4";
  Device& device = *cuda::SyncedOps()->device;
  constexpr int64_t kM = 2048, kN = 8192, kK = 8192;
  const Stored stored = MakeStored(kN, kK, 1);
  const auto weight = Pack({&stored.view, 1});
  Buffer x = std::move(*Buffer::Allocate(kM * kK * 2, device));
  Buffer y = std::move(*Buffer::Allocate(kM * kN * 2, device));
  const size_t bytes = cuda::LinearW4a4Workspace(kM, kK);
  Buffer workspace = std::move(*Buffer::Allocate(bytes, device));
  device.Clear(x.data(), x.size());
  const auto run = [&] {
    cuda::LinearW4a4(
        {.stream = device.stream(), .workspace = workspace.data(), .workspace_bytes = bytes},
        {.x = x.as<uint16_t>(),
         .x_stride = kK,
         .weight = weight.get(),
         .y = y.as<uint16_t>(),
         .y_stride = kN,
         .m = kM});
  };
  run();
  constexpr int kTurns = 20;
  const auto begin = device.Mark();
  for (int i = 0; i < kTurns; ++i) run();
  const auto end = device.Mark();
  device.Synchronize();
  const double seconds = device.SecondsBetween(*begin, *end) / kTurns;
  std::printf("%ld tokens x %ld x %ld: %.1f us, %.0f TFLOP/s\n", kM, kN, kK, seconds * 1e6,
              2e-12 * kM * kN * kK / seconds);
}

}  // namespace
}  // namespace nibble::kernels
