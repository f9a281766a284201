// Linear, packing and embedding of every variant that this processor runs, against ref/.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/linear_fixture.h"

namespace nibble::kernels {
namespace {

constexpr WeightFormat kFormats[] = {
    WeightFormat::kNvfp4, WeightFormat::kMxfp4, WeightFormat::kBf16, WeightFormat::kFp8,
    WeightFormat::kF16,   WeightFormat::kF32,   WeightFormat::kInt4, WeightFormat::kInt8};
constexpr ActivationFormat kActivations[] = {ActivationFormat::kInt8, ActivationFormat::kInt16,
                                             ActivationFormat::kBf16};

int64_t BlockOf(WeightFormat format) {
  if (format == WeightFormat::kNvfp4) return 16;
  return format == WeightFormat::kMxfp4 ? 32 : 1;
}

class LinearVariant : public testing::TestWithParam<std::string> {
 protected:
  const OpTable& ops() const { return **CpuOpsVariant(GetParam()); }
};

TEST_P(LinearVariant, MatchesRefOverAwkwardShapes) {
  Runner cpu(ops(), 2);
  Runner ref(RefOps());
  uint32_t seed = 1;
  for (const WeightFormat format : kFormats) {
    for (const ActivationFormat activations : kActivations) {
      if (EffectiveActivations(format, activations) != activations) continue;
      for (const int64_t n : {1, 15, 17, 96}) {
        for (const int64_t k : {16, 32, 64, 80, 100, 576, 1536}) {
          if (k % BlockOf(format) != 0) continue;
          SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " N=" << n << " K=" << k
                                          << " x " << ActivationFormatName(activations));
          const Stored stored = MakeWeight(format, n, k, ++seed, 0.003f);
          const auto x = MakeActivations(3 * k, ++seed);
          std::vector<float> bias(n);
          for (int64_t i = 0; i < n; ++i) bias[i] = static_cast<float>(i) * 0.01f;
          const auto weight = cpu.Pack({&stored.view, 1}, activations);
          const auto ref_weight = ref.Pack({&stored.view, 1}, activations);
          EXPECT_EQ(weight->activations(), ref_weight->activations());
          ExpectClose(cpu.Linear(*weight, x), ref.Linear(*ref_weight, x),
                      Magnitudes({&stored.view, 1}, x));
          // With a bias the output has one more rounding, relative to the bias.
          auto magnitudes = Magnitudes({&stored.view, 1}, x);
          for (size_t i = 0; i < magnitudes.size(); ++i) magnitudes[i] += bias[i % n];
          ExpectClose(cpu.Linear(*weight, x, bias), ref.Linear(*ref_weight, x, bias), magnitudes);
        }
      }
    }
  }
}

// The largest N that a test can afford, so that many panels and threads take part.
TEST_P(LinearVariant, MatchesRefOverManyPanels) {
  Runner cpu(ops(), 3);
  Runner ref(RefOps());
  for (const ActivationFormat activations : kActivations) {
    const Stored stored = MakeWeight(WeightFormat::kNvfp4, 576, 576, 5, 0.01f);
    const auto x = MakeActivations(5 * 576, 6);
    ExpectClose(cpu.Linear(*cpu.Pack({&stored.view, 1}, activations), x),
                ref.Linear(*ref.Pack({&stored.view, 1}, activations), x),
                Magnitudes({&stored.view, 1}, x));
  }
}

TEST_P(LinearVariant, Fp8ScalesPerTensorChannelAndBlock) {
  Runner cpu(ops());
  Runner ref(RefOps());
  constexpr int64_t kWhole = int64_t{1} << 40;
  const BlockScales kinds[] = {{DType::kF32, kWhole, kWhole},
                               {DType::kBF16, 1, kWhole},
                               {DType::kF32, 128, 128},
                               {DType::kF32, 16, 32},
                               {DType::kF8E8M0, 1, 32}};
  for (const BlockScales& kind : kinds) {
    for (const int64_t k : {96, 100, 128, 200, 320, 416}) {
      SCOPED_TRACE(testing::Message() << kind.block_n << " x " << kind.block_k << " K=" << k);
      const Stored stored = MakeWeight(WeightFormat::kFp8, 150, k, 9, 1, kind);
      const auto x = MakeActivations(2 * k, 10);
      ExpectClose(cpu.Linear(*cpu.Pack({&stored.view, 1}, ActivationFormat::kBf16), x),
                  ref.Linear(*ref.Pack({&stored.view, 1}, ActivationFormat::kBf16), x),
                  Magnitudes({&stored.view, 1}, x));
    }
  }
}

TEST_P(LinearVariant, Fp8NanCodesMakeTheirRowNan) {
  Runner cpu(ops());
  for (const std::byte code : {std::byte{0x7F}, std::byte{0xFF}}) {
    Stored stored = MakeWeight(WeightFormat::kFp8, 20, 96, 15);
    stored.data[17 * 96 + 70] = code;
    for (const int64_t m : {1, 9}) {
      const auto x = MakeActivations(m * 96, 16);
      const auto y = cpu.Linear(*cpu.Pack({&stored.view, 1}, ActivationFormat::kBf16), x);
      for (int64_t i = 0; i < m * 20; ++i) EXPECT_EQ(std::isnan(y[i]), i % 20 == 17) << i;
    }
  }
}

TEST_P(LinearVariant, StackedPartsGiveTheBitsOfEachAlone) {
  Runner cpu(ops(), 2);
  for (const WeightFormat format : kFormats) {
    for (const ActivationFormat activations : kActivations) {
      SCOPED_TRACE(WeightFormatName(format));
      const int64_t k = 192;
      const BlockScales fp8[] = {{DType::kF32, 1, 64}, {DType::kF32, 1, 96}, {}};
      const Stored parts[] = {MakeWeight(format, 37, k, 1, 0.5f, fp8[0]),
                              MakeWeight(format, 5, k, 2, 3e-4f, fp8[1]),
                              MakeWeight(format, 64, k, 3, 7.0f, fp8[2])};
      const QuantView views[] = {parts[0].view, parts[1].view, parts[2].view};
      const auto x = MakeActivations(4 * k, 4);
      const auto stacked = cpu.Linear(*cpu.Pack(views, activations), x);
      int64_t row = 0;
      for (const QuantView& view : views) {
        const auto alone = cpu.Linear(*cpu.Pack({&view, 1}, activations), x);
        for (int64_t token = 0; token < 4; ++token) {
          for (int64_t i = 0; i < view.n; ++i) {
            ASSERT_EQ(stacked[token * 106 + row + i], alone[token * view.n + i]);
          }
        }
        row += view.n;
      }
    }
  }
}

TEST_P(LinearVariant, BitsDependOnNeitherTokensNorThreads) {
  const int64_t n = 40;
  const int64_t k = 320;
  const int64_t m = 200;  // more than one pass over the weights
  for (const WeightFormat format : kFormats) {
    for (const ActivationFormat activations : kActivations) {
      SCOPED_TRACE(WeightFormatName(format));
      const Stored stored = MakeWeight(format, n, k, 11, 0.02f);
      const auto x = MakeActivations(m * k, 12);
      Runner one(ops(), 1);
      const auto weight = one.Pack({&stored.view, 1}, activations);
      const auto all = one.LinearBf16(*weight, x);
      const auto all_f32 = one.Linear(*weight, x);
      for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], Bf16FromFloat(all_f32[i]));
      EXPECT_EQ(Runner(ops(), 3).Linear(*weight, x), all_f32);
      for (int64_t count = 1; count < 30; ++count) {
        const int64_t first = (count * 7) % (m - 30);
        const std::vector<uint16_t> some(x.begin() + first * k, x.begin() + (first + count) * k);
        const auto y = one.Linear(*weight, some);
        ASSERT_EQ(std::memcmp(y.data(), &all_f32[first * n], y.size() * sizeof(float)), 0)
            << count << " tokens from " << first;
      }
    }
  }
}

// One arithmetic for all instruction sets: what generic C++ computes, bit for bit.
TEST_P(LinearVariant, BitsEqualTheGenericVariant) {
  Runner cpu(ops());
  Runner generic(**CpuOpsVariant("generic"));
  for (const WeightFormat format : kFormats) {
    for (const ActivationFormat activations : kActivations) {
      SCOPED_TRACE(testing::Message()
                   << WeightFormatName(format) << " x " << ActivationFormatName(activations));
      // vdpbf16ps takes 4-bit codes as BF16 instead of activations as fixed point.
      const bool codes = format == WeightFormat::kNvfp4 || format == WeightFormat::kMxfp4 ||
                         format == WeightFormat::kInt4;
      const bool bf16 = EffectiveActivations(format, activations) == ActivationFormat::kBf16;
      if (GetParam() == "avx512bf16" && codes && bf16) continue;
      for (const int64_t k : {64, 352, 576}) {
        const Stored stored = MakeWeight(format, 33, k, 21, 0.7f);
        auto x = MakeActivations(5 * k, 22);
        for (int64_t i = 0; i < k; ++i) x[i] = Bf16FromFloat(Bf16ToFloat(x[i]) * 1e-9f);
        for (int64_t i = k; i < 2 * k; ++i) x[i] = Bf16FromFloat(Bf16ToFloat(x[i]) * 1e9f);
        EXPECT_EQ(cpu.Linear(*cpu.Pack({&stored.view, 1}, activations), x),
                  generic.Linear(*generic.Pack({&stored.view, 1}, activations), x));
      }
    }
  }
}

// Requantised weights: few tokens have the bits of int8, many are close to the stored values.
TEST_P(LinearVariant, RequantizedIsInt8OfFewTokensAndCloseOfMany) {
  Runner cpu(ops(), 2);
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kMxfp4}) {
    for (const int64_t k : {64, 128, 192, 576, 1600}) {
      SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " K=" << k);
      const int64_t n = 70;
      const Stored stored = MakeWeight(format, n, k, 23, 0.7f);
      const auto x = MakeActivations(50 * k, 24);
      const auto weight = cpu.Pack({&stored.view, 1}, ActivationFormat::kRequantized);
      const std::vector<uint16_t> few(x.begin(), x.begin() + 5 * k);
      EXPECT_EQ(cpu.Linear(*weight, few),
                cpu.Linear(*cpu.Pack({&stored.view, 1}, ActivationFormat::kInt8), few));
      const auto many = cpu.Linear(*weight, x);
      const auto exact = cpu.Linear(*cpu.Pack({&stored.view, 1}, ActivationFormat::kBf16), x);
      double error = 0;
      double size = 0;
      for (size_t i = 0; i < many.size(); ++i) {
        error += (many[i] - exact[i]) * (many[i] - exact[i]);
        size += exact[i] * exact[i];
      }
      EXPECT_LT(std::sqrt(error / size), 0.02);
      // All of a token's products take part: tokens alike give results alike, whatever their tile.
      EXPECT_EQ(std::vector<float>(many.begin(), many.begin() + 40 * n),
                cpu.Linear(*weight, {x.begin(), x.begin() + 40 * k}));
    }
  }
}

TEST_P(LinearVariant, ZeroScalesAndZeroActivationsGiveZero) {
  Runner cpu(ops());
  for (const ActivationFormat activations : kActivations) {
    Stored stored = MakeWeight(WeightFormat::kNvfp4, 16, 128, 31);
    for (std::byte& scale : stored.scales) scale = std::byte{0};
    const auto x = MakeActivations(128, 32);
    for (float y : cpu.Linear(*cpu.Pack({&stored.view, 1}, activations), x)) EXPECT_EQ(y, 0.0f);

    const Stored other = MakeWeight(WeightFormat::kNvfp4, 16, 128, 33);
    const std::vector<uint16_t> zeros(128, 0);
    for (float y : cpu.Linear(*cpu.Pack({&other.view, 1}, activations), zeros)) EXPECT_EQ(y, 0.0f);
  }
}

TEST_P(LinearVariant, NanScaleOverZerosIsAZeroBlock) {
  Runner cpu(ops());
  Runner ref(RefOps());
  Stored stored = MakeWeight(WeightFormat::kNvfp4, 16, 128, 41);
  stored.scales[3] = std::byte{0x7F};
  for (int i = 0; i < 8; ++i) stored.data[3 * 8 + i] = std::byte{0x80};  // zeros, one negative
  const auto x = MakeActivations(128, 42);
  for (const ActivationFormat activations : kActivations) {
    ExpectClose(cpu.Linear(*cpu.Pack({&stored.view, 1}, activations), x),
                ref.Linear(*ref.Pack({&stored.view, 1}, activations), x),
                Magnitudes({&stored.view, 1}, x));
  }
}

TEST_P(LinearVariant, ExtremeScalesKeepTheirPrecision) {
  Runner cpu(ops());
  Runner ref(RefOps());
  for (const float global_scale : {1e-12f, 1e-5f, 300.0f}) {
    for (const float magnitude : {1e-8f, 1.0f, 3e6f}) {
      for (const uint8_t code : {uint8_t{0x01}, uint8_t{0x07}, uint8_t{0x7E}}) {
        SCOPED_TRACE(testing::Message() << global_scale << " " << magnitude << " " << int{code});
        Stored stored = MakeWeight(WeightFormat::kNvfp4, 16, 128, 51, global_scale);
        for (std::byte& scale : stored.scales) scale = std::byte{code};
        auto x = MakeActivations(128, 52);
        for (uint16_t& value : x) value = Bf16FromFloat(Bf16ToFloat(value) * magnitude);
        for (const ActivationFormat activations : kActivations) {
          ExpectClose(cpu.Linear(*cpu.Pack({&stored.view, 1}, activations), x),
                      ref.Linear(*ref.Pack({&stored.view, 1}, activations), x),
                      Magnitudes({&stored.view, 1}, x));
        }
      }
    }
  }
}

// Every scale byte at least once, one per row.
TEST_P(LinearVariant, EveryScaleByte) {
  Runner cpu(ops());
  Runner ref(RefOps());
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kMxfp4}) {
    const bool nvfp4 = format == WeightFormat::kNvfp4;
    // MXFP4 codes 40..180: within what FP32 sums of these activations can hold.
    const int first = nvfp4 ? 0 : 40;
    const int count = nvfp4 ? 0x7F : 141;
    Stored stored = MakeWeight(format, count, 64, 61);
    const int64_t blocks = stored.view.scale_bytes() / count;
    for (int64_t i = 0; i < stored.view.scale_bytes(); ++i) {
      stored.scales[i] = std::byte(first + static_cast<int>(i / blocks));
    }
    const auto x = MakeActivations(64, 62);
    for (const ActivationFormat activations : kActivations) {
      ExpectClose(cpu.Linear(*cpu.Pack({&stored.view, 1}, activations), x),
                  ref.Linear(*ref.Pack({&stored.view, 1}, activations), x),
                  Magnitudes({&stored.view, 1}, x));
    }
  }
}

TEST_P(LinearVariant, NonFiniteActivationsDoNotHide) {
  Runner cpu(ops());
  const Stored stored = MakeWeight(WeightFormat::kNvfp4, 16, 128, 71);
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    for (const ActivationFormat activations : kActivations) {
      auto x = MakeActivations(2 * 128, 72);
      x[77] = Bf16FromFloat(bad);
      const auto y = cpu.Linear(*cpu.Pack({&stored.view, 1}, activations), x);
      int finite = 0;
      for (int i = 0; i < 16; ++i) finite += std::isfinite(y[i]) ? 1 : 0;
      // In BF16 a zero code times infinity is NaN, any other is infinite.
      EXPECT_EQ(finite, 0);
      for (int i = 16; i < 32; ++i) EXPECT_TRUE(std::isfinite(y[i])) << "the other token";
    }
  }
}

TEST_P(LinearVariant, EmbedEqualsTheStoredValues) {
  Runner cpu(ops(), 2);
  Runner ref(RefOps());
  for (const WeightFormat format : kFormats) {
    for (const int64_t k : {32, 96, 576}) {
      SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " K=" << k);
      const Stored parts[] = {
          MakeWeight(format, 50, k, 81, 0.37f, {DType::kF32, 1, 32}),
          MakeWeight(format, 30, k, 82, 0.011f, {DType::kF32, 1, 96}),
      };
      const QuantView views[] = {parts[0].view, parts[1].view};
      const std::vector<int32_t> ids = {0, 79, 49, 50, 17, 17, 3};
      EXPECT_EQ(cpu.Embed(*cpu.Pack(views, ActivationFormat::kInt8), ids),
                ref.Embed(*ref.Pack(views, ActivationFormat::kInt8), ids));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, LinearVariant, testing::ValuesIn(Variants()),
                         [](const auto& info) { return info.param; });

// Errors are the same for every backend.
class PackErrors : public testing::TestWithParam<const OpTable*> {
 protected:
  std::string Message(std::span<const QuantView> parts) {
    ThreadPool pool(2);
    auto packed = GetParam()->pack_weight({.parts = parts, .pool = &pool});
    return packed.has_value() ? "packed" : packed.error().message();
  }
};

TEST_P(PackErrors, NameRowBlockAndValue) {
  Stored stored = MakeWeight(WeightFormat::kNvfp4, 20, 64, 91);
  stored.scales[18 * 4 + 2] = std::byte{0xB8};
  stored.scales[19 * 4] = std::byte{0xB9};
  EXPECT_EQ(Message({&stored.view, 1}),
            "row 18, block 2: the NVFP4 scale 0xB8 has its sign bit set; legal scales are "
            "0x00..0x7E");
  stored.scales[18 * 4 + 2] = std::byte{0x7F};
  EXPECT_NE(Message({&stored.view, 1}).find("row 18, block 2: the NVFP4 scale 0x7F is NaN"),
            std::string::npos);

  Stored mx = MakeWeight(WeightFormat::kMxfp4, 3, 64, 92);
  mx.scales[5] = std::byte{0xFF};
  EXPECT_EQ(Message({&mx.view, 1}), "row 2, block 1: the MXFP4 scale 0xFF is NaN");

  Stored infinite = MakeWeight(WeightFormat::kNvfp4, 3, 64, 93, INFINITY);
  const Stored finite = MakeWeight(WeightFormat::kNvfp4, 3, 64, 93);
  const QuantView parts[] = {finite.view, infinite.view};
  EXPECT_EQ(Message(parts), "part 1: tensor scale inf: must be finite and not negative");
}

TEST_P(PackErrors, PartsMustAgree) {
  const Stored a = MakeWeight(WeightFormat::kNvfp4, 3, 64, 94);
  const Stored b = MakeWeight(WeightFormat::kNvfp4, 3, 128, 95);
  const QuantView parts[] = {a.view, b.view};
  EXPECT_EQ(Message(parts),
            "part 1: stacked weights differ: nvfp4 with K = 128, the first is nvfp4 with K = 64");
  EXPECT_EQ(Message({}), "a weight without parts");
}

INSTANTIATE_TEST_SUITE_P(Backends, PackErrors, testing::Values(&RefOps(), &CpuOps()),
                         [](const auto& info) { return std::string(info.param->backend); });

TEST(CpuOpsVariant, UnknownNamesWhatThereIs) {
  const auto missing = CpuOpsVariant("sse9");
  ASSERT_FALSE(missing.has_value());
  EXPECT_NE(missing.error().message().find("generic"), std::string::npos);
}

}  // namespace
}  // namespace nibble::kernels
