// INT4 and INT8 linears of every variant over groups, zero points and scale types, and weights that
// reorder or multiply their activations, against ref/ and each other.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/linear_fixture.h"

namespace nibble::kernels {
namespace {

constexpr WeightFormat kIntegers[] = {WeightFormat::kInt4, WeightFormat::kInt8};
constexpr ActivationFormat kActivations[] = {ActivationFormat::kInt8, ActivationFormat::kBf16};
constexpr int64_t kWhole = int64_t{1} << 40;
constexpr BlockScales kGroups[] = {{DType::kF16, 1, 128, true},   {DType::kBF16, 1, 128},
                                   {DType::kBF16, 1, 32, true},   {DType::kF16, 1, 64},
                                   {DType::kF32, 1, 96, true},    {DType::kF32, 1, 32},
                                   {DType::kF16, 1, kWhole, true}};

class LinearInt : public testing::TestWithParam<std::string> {
 protected:
  const OpTable& ops() const { return **CpuOpsVariant(GetParam()); }
};

std::string Describe(WeightFormat format, const BlockScales& groups, int64_t k,
                     ActivationFormat activations) {
  return std::string(WeightFormatName(format)) + " groups of " + std::to_string(groups.block_k) +
         ", K " + std::to_string(k) + (groups.zeros ? ", zeros" : "") +
         (activations == ActivationFormat::kInt8 ? ", int8" : ", bf16");
}

// Over every (format, groups, K, activations): fn(stored weight, activations).
template <typename Fn>
void ForEachCase(std::initializer_list<int64_t> ks, int64_t n, Fn&& fn) {
  uint32_t seed = 100;
  for (const WeightFormat format : kIntegers) {
    for (const BlockScales& groups : kGroups) {
      for (const int64_t k : ks) {
        const Stored stored = MakeWeight(format, n, k, ++seed, 1, groups);
        for (const ActivationFormat activations : kActivations) {
          SCOPED_TRACE(Describe(format, groups, k, activations));
          fn(stored, activations);
        }
      }
    }
  }
}

TEST_P(LinearInt, MatchesRefOverGroupsZerosAndTails) {
  Runner cpu(ops(), 2);
  Runner ref(RefOps());
  ForEachCase({2, 32, 70, 128, 200, 608, 1152}, 37, [&](const Stored& stored, auto activations) {
    const auto x = MakeActivations(3 * stored.view.k, 5);
    ExpectClose(cpu.Linear(*cpu.Pack({&stored.view, 1}, activations), x),
                ref.Linear(*ref.Pack({&stored.view, 1}, activations), x),
                Magnitudes({&stored.view, 1}, x));
  });
}

TEST_P(LinearInt, BitsEqualTheGenericVariantForAnyTokensAndThreads) {
  Runner cpu(ops());
  Runner threads(ops(), 3);
  Runner generic(**CpuOpsVariant("generic"));
  ForEachCase({328}, 40, [&](const Stored& stored, auto activations) {
    const int64_t m = 14;
    const int64_t k = stored.view.k;
    const auto x = MakeActivations(m * k, 6);
    const auto weight = cpu.Pack({&stored.view, 1}, activations);
    const auto all = cpu.Linear(*weight, x);
    // vdpbf16ps takes 4-bit codes as BF16 instead of activations as fixed point.
    if (GetParam() != "avx512bf16" || stored.view.format != WeightFormat::kInt4 ||
        activations != ActivationFormat::kBf16) {
      EXPECT_EQ(all, generic.Linear(*generic.Pack({&stored.view, 1}, activations), x));
    }
    EXPECT_EQ(all, threads.Linear(*weight, x));
    for (int64_t count = 1; count < m; ++count) {
      const auto y = cpu.Linear(*weight, {x.begin(), x.begin() + count * k});
      ASSERT_EQ(std::memcmp(y.data(), all.data(), y.size() * sizeof(float)), 0) << count;
    }
  });
}

// Parts in other groups, scale types, with and without zero points share one weight.
TEST_P(LinearInt, StackedPartsGiveTheBitsOfEachAlone) {
  Runner cpu(ops(), 2);
  const int64_t k = 328;
  const auto x = MakeActivations(2 * k, 7);
  for (const WeightFormat format : kIntegers) {
    std::vector<Stored> parts;
    std::vector<QuantView> views;
    int64_t rows = 0;
    for (const BlockScales& groups : kGroups) {
      parts.push_back(MakeWeight(format, 5 + rows % 7, k, 8 + rows, 1, groups));
      rows += parts.back().view.n;
    }
    for (const Stored& part : parts) views.push_back(part.view);
    for (const ActivationFormat activations : kActivations) {
      const auto stacked = cpu.Linear(*cpu.Pack(views, activations), x);
      int64_t row = 0;
      for (const QuantView& view : views) {
        const auto alone = cpu.Linear(*cpu.Pack({&view, 1}, activations), x);
        for (int64_t i = 0; i < 2 * view.n; ++i) {
          ASSERT_EQ(stacked[i / view.n * rows + row + i % view.n], alone[i]);
        }
        row += view.n;
      }
    }
  }
}

// Codes, zero points and activations at the ends of their ranges: integer sums must not overflow.
TEST_P(LinearInt, LargestSums) {
  Runner cpu(ops());
  Runner ref(RefOps());
  for (const WeightFormat format : kIntegers) {
    for (const int code : {0, 255}) {
      Stored stored = MakeWeight(format, 17, 128, 9, 1, {DType::kF32, 1, 128, true});
      for (std::byte& byte : stored.data) byte = std::byte(code);
      const uint8_t largest_zero = format == WeightFormat::kInt4 ? 16 : 255;
      for (uint8_t& zero : stored.zeros) zero = code == 0 ? largest_zero : 0;
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<uint16_t> x(2 * 128, Bf16FromFloat(sign * 3.0f));
        for (const ActivationFormat activations : kActivations) {
          ExpectClose(cpu.Linear(*cpu.Pack({&stored.view, 1}, activations), x),
                      ref.Linear(*ref.Pack({&stored.view, 1}, activations), x),
                      Magnitudes({&stored.view, 1}, x));
        }
      }
    }
  }
}

// Every code against every zero point of INT4 and every code of INT8, one product each.
TEST_P(LinearInt, EveryCode) {
  Runner cpu(ops());
  for (const WeightFormat format : kIntegers) {
    const int64_t n = format == WeightFormat::kInt4 ? 17 : 256;
    const int64_t k = format == WeightFormat::kInt4 ? 16 : 256;
    Stored stored = MakeWeight(format, n, k, 10, 1, {DType::kF32, 1, kWhole, true});
    for (int64_t i = 0; i < static_cast<int64_t>(stored.data.size()); ++i) {
      stored.data[i] = format == WeightFormat::kInt4 ? std::byte(i % 8 * 2 | (i % 8 * 2 + 1) << 4)
                                                     : std::byte(i % 256);
    }
    for (int64_t row = 0; row < n; ++row) stored.zeros[row] = static_cast<uint8_t>(row);
    std::vector<uint16_t> x(k * k, 0);
    for (int64_t i = 0; i < k; ++i) x[i * k + i] = Bf16FromFloat(1.0f);
    const auto y = cpu.Linear(*cpu.Pack({&stored.view, 1}, ActivationFormat::kBf16), x);
    for (int64_t i = 0; i < k * n; ++i) {
      ASSERT_EQ(y[i], DequantizeElement(stored.view, i % n, i / n)) << i;
    }
  }
}

TEST_P(LinearInt, EmbedEqualsTheStoredValues) {
  Runner cpu(ops());
  Runner ref(RefOps());
  const std::vector<int32_t> ids = {0, 36, 17, 15, 16};
  ForEachCase({70, 256}, 37, [&](const Stored& stored, auto activations) {
    EXPECT_EQ(cpu.Embed(*cpu.Pack({&stored.view, 1}, activations), ids),
              ref.Embed(*ref.Pack({&stored.view, 1}, activations), ids));
  });
}

// A weight that transforms its activations gives the bits of one that meets them transformed.
TEST_P(LinearInt, ColumnOrderAndInputMultiplier) {
  Runner cpu(ops(), 2);
  Runner ref(RefOps());
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kBf16, WeightFormat::kF32,
                                    WeightFormat::kInt4, WeightFormat::kInt8}) {
    for (const auto& [order, multiplier] : {std::pair{true, false}, {false, true}, {true, true}}) {
      for (const int64_t k : {16, 80, 336}) {
        const Stored plain = MakeWeight(format, 21, k, 11, 0.5f, {DType::kBF16, 1, 64, true});
        Stored stored = MakeWeight(format, 21, k, 11, 0.5f, {DType::kBF16, 1, 64, true});
        TransformInputs(stored, order, multiplier, 12);
        const auto x = MakeActivations(5 * k, 13);
        const auto transformed = Transformed(stored.view, x);
        for (const ActivationFormat activations : kActivations) {
          SCOPED_TRACE(testing::Message() << WeightFormatName(format) << " order " << order
                                          << " multiplier " << multiplier << " K=" << k);
          for (Runner* runner : {&cpu, &ref}) {
            EXPECT_EQ(runner->Linear(*runner->Pack({&stored.view, 1}, activations), x),
                      runner->Linear(*runner->Pack({&plain.view, 1}, activations), transformed));
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, LinearInt, testing::ValuesIn(Variants()),
                         [](const auto& info) { return info.param; });

// Errors are the same for every backend.
class IntPackErrors : public testing::TestWithParam<const OpTable*> {
 protected:
  std::string Message(std::span<const QuantView> parts, bool gather_rows = false) {
    auto packed = GetParam()->pack_weight({.parts = parts, .gather_rows = gather_rows});
    return packed.has_value() ? "packed" : packed.error().message();
  }
};

TEST_P(IntPackErrors, GroupsScalesAndZeros) {
  Stored odd = MakeWeight(WeightFormat::kInt4, 3, 128, 1, 1, {DType::kF16, 1, 48});
  EXPECT_EQ(Message({&odd.view, 1}),
            "int4 scales of 48 columns each: must be a multiple of 32, or one per row");
  odd.view.scale_block_k = 0;
  EXPECT_EQ(Message({&odd.view, 1}), "int4 scales of 1 rows and 0 columns each");

  Stored tall = MakeWeight(WeightFormat::kInt8, 4, 128, 2, 1, {DType::kF16, 1, 64});
  tall.view.scale_block_n = 2;
  EXPECT_EQ(Message({&tall.view, 1}),
            "int8 scales of 2 rows each in F16: must be of one row, in BF16, F16 or F32");

  Stored zero = MakeWeight(WeightFormat::kInt4, 3, 128, 3, 1, {DType::kF16, 1, 64, true});
  zero.zeros[2 * 2 + 1] = 17;
  EXPECT_EQ(Message({&zero.view, 1}), "row 2, block 1: the INT4 zero point 17 is not in 0..16");

  Stored infinite = MakeWeight(WeightFormat::kInt8, 3, 128, 4, 1, {DType::kF32, 1, 64});
  const float bad = INFINITY;
  std::memcpy(&infinite.scales[4 * 3], &bad, 4);
  EXPECT_EQ(Message({&infinite.view, 1}),
            "row 1, block 1: the int8 scale inf must be finite and at most 2^100 in magnitude");

  Stored mxfp8 = MakeWeight(WeightFormat::kFp8, 3, 128, 5, 1, {DType::kF8E8M0, 1, 32});
  EXPECT_EQ(Message({&mxfp8.view, 1}), "packed");
  mxfp8.scales[6] = std::byte{0xFF};
  EXPECT_NE(Message({&mxfp8.view, 1}).find("row 1, block 2: the fp8 scale nan"), std::string::npos);
}

TEST_P(IntPackErrors, ColumnOrderAndInputMultiplier) {
  Stored plain = MakeWeight(WeightFormat::kInt4, 3, 128, 6, 1, {DType::kF16, 1, 64});
  Stored stored = MakeWeight(WeightFormat::kInt4, 3, 128, 6, 1, {DType::kF16, 1, 64});
  TransformInputs(stored, true, true, 7);
  EXPECT_EQ(Message({&stored.view, 1}), "packed");
  EXPECT_NE(Message({&stored.view, 1}, true).find("embedding"), std::string::npos);
  const QuantView mixed[] = {stored.view, plain.view};
  EXPECT_NE(Message(mixed).find("part 1: stacked weights differ in their column order"),
            std::string::npos);
  const std::vector<int32_t> same_order = stored.column_order;
  QuantView same = stored.view;
  same.column_order = same_order.data();
  const QuantView equal[] = {stored.view, same};
  EXPECT_EQ(Message(equal), "packed");

  stored.input_multiplier[5] = NAN;
  EXPECT_EQ(Message({&stored.view, 1}), "input multiplier 5: nan is not finite");
  stored.column_order[9] = 128;
  EXPECT_EQ(Message({&stored.view, 1}), "column order 9: 128 is not in 0..127");
}

INSTANTIATE_TEST_SUITE_P(Backends, IntPackErrors, testing::Values(&RefOps(), &CpuOps()),
                         [](const auto& info) { return std::string(info.param->backend); });

}  // namespace
}  // namespace nibble::kernels
