// linear_fp8 of every backend that has it: against its definition in double, written here once
// more, and against itself, as a token must not depend on the others.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/linear_fixture.h"
#include "kernels/parity_fixture.h"

namespace nibble::kernels {
namespace {

std::vector<const OpTable*> TablesWithFp8() {
  std::vector<const OpTable*> tables = {&RefOps()};
  for (const OpTable* table : TestedTables())
    if (table->linear_fp8 != nullptr) tables.push_back(table);
  return tables;
}

std::vector<const OpTable*> FastTablesWithFp8() {
  std::vector<const OpTable*> tables = TablesWithFp8();
  tables.erase(tables.begin());
  return tables;
}

constexpr BlockScales kPerTensor = {DType::kF32, int64_t{1} << 40};
constexpr BlockScales kPerRow = {DType::kBF16};
constexpr BlockScales kBlocks = {DType::kBF16, 128, 128};

struct Weight {
  std::vector<Stored> stored;
  std::vector<QuantView> parts;

  Weight(std::vector<int64_t> rows, int64_t k, BlockScales scales, float input_scale = 0.0f,
         uint32_t seed = 1) {
    for (const int64_t n : rows) {
      BlockScales blocks = scales;
      blocks.block_n = std::min(blocks.block_n, n);
      stored.push_back(MakeWeight(WeightFormat::kFp8, n, k, seed++, 1.0f, blocks));
      stored.back().view.input_scale = input_scale;
    }
    for (const Stored& part : stored) parts.push_back(part.view);
  }
  std::unique_ptr<PackedWeight> PackFor(const OpTable& ops) const {
    return Runner(ops).Pack(parts, ActivationFormat::kBf16);
  }
};

void Call(const OpTable& ops, const LinearParams& params) {
  const std::vector<std::byte> dirt(ops.linear_fp8_workspace(params.m, params.weight->k()),
                                    std::byte{0xFF});
  Buffer workspace = std::move(*Buffer::Allocate(dirt.size(), *ops.device));
  ops.device->Upload(workspace.data(), dirt.data(), dirt.size());
  ops.linear_fp8({.workspace = workspace.data(), .workspace_bytes = dirt.size()}, params);
}

std::vector<float> Multiply(const OpTable& ops, const PackedWeight& weight,
                            const std::vector<uint16_t>& x) {
  const int64_t m = static_cast<int64_t>(x.size()) / weight.k();
  std::vector<float> y(m * weight.n());
  Call(ops, {.x = x.data(),
             .x_stride = weight.k(),
             .weight = &weight,
             .y_f32 = y.data(),
             .y_stride = weight.n(),
             .m = m});
  return y;
}

// y in double, and the sum of magnitudes.
struct Definition {
  std::vector<double> y;
  std::vector<double> magnitudes;

  Definition(const Weight& weight, const std::vector<uint16_t>& x) {
    const int64_t k = weight.parts[0].k;
    const bool by_blocks = weight.parts[0].scale_block_k < k;
    const int64_t group = by_blocks ? 128 : k;
    for (size_t first = 0; first < x.size(); first += k) {
      std::vector<double> rounded;
      for (int64_t i = 0; i < k; i += group) {
        const int64_t end = std::min(k, i + group);
        float scale = weight.parts[0].input_scale;
        if (scale == 0) {
          for (int64_t j = i; j < end; ++j)
            scale = std::max(scale, std::fabs(Bf16ToFloat(x[first + j])));
          scale /= 448.0f;
        }
        for (int64_t j = i; j < end; ++j)
          rounded.push_back(
              double{E4M3ToFloat(E4M3FromFloat(Bf16ToFloat(x[first + j]) * (1.0f / scale)))} *
              double{scale});
      }
      std::vector<float> w(k);
      for (const QuantView& part : weight.parts)
        for (int64_t row = 0; row < part.n; ++row) {
          DequantizeRow(part, row, w.data());
          double sum = 0, magnitude = 0;
          for (int64_t i = 0; i < k; ++i) {
            sum += rounded[i] * double{w[i]};
            magnitude += std::fabs(rounded[i] * double{w[i]});
          }
          y.push_back(sum);
          magnitudes.push_back(magnitude);
        }
    }
  }
};

TEST(LinearFp8Parity, IsWhatItIsDefinedToBe) {
  struct Case {
    std::vector<int64_t> rows;
    int64_t k;
    BlockScales scales;
    float input_scale = 0.0f;
  };
  const std::vector<Case> cases = {{{150}, 608, kPerTensor},
                                   {{150}, 608, kPerTensor, 0.01f},
                                   {{1}, 64, kPerRow},
                                   {{333}, 1056, kPerRow},
                                   {{40, 24, 100}, 320, kPerRow, 0.02f},
                                   {{136}, 2304, kBlocks},
                                   {{333}, 1056, kBlocks},
                                   {{64, 200}, 416, kBlocks},
                                   {{130}, 712, kBlocks, 0.01f}};
  for (const OpTable* ops : TablesWithFp8())
    for (const Case& c : cases) {
      SCOPED_TRACE(testing::Message() << ops->backend << ", " << c.rows[0] << " x " << c.k);
      const Weight weight(c.rows, c.k, c.scales, c.input_scale);
      const auto packed = weight.PackFor(*ops);
      ASSERT_EQ(packed->fp8().group, c.scales.block_k < c.k ? 128 : c.k);
      for (const int64_t m : {3, 70}) {
        const auto x = MakeActivations(m * c.k, 4);
        const Definition expected(weight, x);
        const std::vector<float> y = Multiply(*ops, *packed, x);
        double worst = 0;
        for (size_t i = 0; i < y.size(); ++i)
          worst = std::max(worst, std::fabs(y[i] - expected.y[i]) / expected.magnitudes[i]);
        RecordProperty(fmt::format("{}_{}x{}_{}", ops->backend, c.rows[0], c.k, m),
                       fmt::format("{:.2g}", worst));
        EXPECT_LE(worst, double{ops->backend == "ref" ? 0x1p-22f : kLinearFp8Tolerance});
      }
    }
}

TEST(LinearFp8Parity, TokensDependOnThemselvesAlone) {
  for (const OpTable* ops : FastTablesWithFp8())
    for (const BlockScales& scales : {kPerRow, kBlocks}) {
      const Weight weight({1000}, 1056, scales);
      const auto packed = weight.PackFor(*ops);
      const int64_t k = packed->k(), n = packed->n(), tokens = 2100;
      const auto x = MakeActivations(tokens * k, 9);
      const std::vector<float> all = Multiply(*ops, *packed, x);
      int64_t first = 0;
      for (const int64_t m : {1, 7, 64, 65, 128, 192, 200, 384, 500}) {
        const std::vector<uint16_t> part(x.begin() + first * k, x.begin() + (first + m) * k);
        const std::vector<float> y = Multiply(*ops, *packed, part);
        ASSERT_EQ(std::memcmp(y.data(), &all[first * n], y.size() * 4), 0) << m << " tokens";
        first += m;
      }
    }
}

// More tiles than multiprocessors, in wide and narrow ones: rows of one weight in a larger one.
TEST(LinearFp8Parity, RowsDependOnThemselvesAlone) {
  for (const OpTable* ops : FastTablesWithFp8())
    for (const BlockScales& scales : {kPerRow, kBlocks}) {
      const Weight part({256}, 512, scales);
      Weight stack = part;
      for (int i = 0; i < 79; ++i) stack.parts.push_back(part.parts[0]);
      const auto one = part.PackFor(*ops), many = stack.PackFor(*ops);
      for (const int64_t m : {50, 700}) {
        const auto x = MakeActivations(m * 512, 9);
        const auto y = Multiply(*ops, *one, x), all = Multiply(*ops, *many, x);
        for (int64_t token = 0; token < m; ++token)
          for (int64_t i = 0; i < 80; ++i)
            ASSERT_EQ(
                std::memcmp(&y[token * 256], &all[(token * 80 + i) * 256], 256 * sizeof(float)), 0);
      }
    }
}

// Norm, bias, sum, rounding and strides are those of linear.
TEST(LinearFp8Parity, DoesWhatLinearDoesAround) {
  for (const OpTable* ops : TablesWithFp8())
    for (const BlockScales& scales : {kPerRow, kBlocks})
      for (const int64_t k : {712, 1024, 8448}) {  // the last is normed by a launch of its own
        SCOPED_TRACE(testing::Message() << ops->backend << ", K " << k);
        const Weight weight({72}, k, scales);
        const auto packed = weight.PackFor(*ops);
        const int64_t n = 72, m = 21, x_stride = k + 8, y_stride = n + 3;
        std::vector<uint16_t> x = MakeActivations(m * x_stride, 3);
        std::vector<float> norm(k), bias(n);
        for (int64_t i = 0; i < k; ++i) norm[i] = 0.5f + static_cast<float>(i % 5) * 0.25f;
        for (int64_t i = 0; i < n; ++i) bias[i] = static_cast<float>(i % 7) - 2.5f;
        const std::vector<uint16_t> before = MakeActivations(m * y_stride, 5);
        std::vector<uint16_t> y = before;
        Call(*ops, {.x = x.data(),
                    .x_stride = x_stride,
                    .norm = {.weight = norm.data()},
                    .weight = packed.get(),
                    .bias = bias.data(),
                    .y = y.data(),
                    .y_stride = y_stride,
                    .add = true,
                    .m = m});
        std::vector<uint16_t> dense, normed(m * k);
        for (int64_t t = 0; t < m; ++t)
          dense.insert(dense.end(), &x[t * x_stride], &x[t * x_stride] + k);
        ops->rms_norm(
            {}, {.x = dense.data(), .weight = norm.data(), .out = normed.data(), .t = m, .d = k});
        std::vector<float> plain(m * n);
        Call(*ops, {.x = normed.data(),
                    .x_stride = k,
                    .weight = packed.get(),
                    .bias = bias.data(),
                    .y_f32 = plain.data(),
                    .y_stride = n,
                    .m = m});
        for (int64_t t = 0; t < m; ++t)
          for (int64_t i = 0; i < y_stride; ++i) {
            uint16_t expected = before[t * y_stride + i];
            if (i < n)
              expected = Bf16FromFloat(Bf16ToFloat(expected) +
                                       Bf16ToFloat(Bf16FromFloat(plain[t * n + i])));
            ASSERT_EQ(y[t * y_stride + i], expected) << "token " << t << ", " << i;
          }
      }
}

TEST(LinearFp8Parity, TakesWhatActivationsMayBe) {
  for (const OpTable* ops : TablesWithFp8())
    for (const BlockScales& scales : {kPerRow, kBlocks}) {
      const Weight weight({20}, 256, scales);
      const auto packed = weight.PackFor(*ops);
      std::vector<uint16_t> x = MakeActivations(5 * 256, 3);
      std::fill_n(x.begin(), 256, uint16_t{0});            // zeros
      x[256 + 5] = 0x7F80;                                 // infinity
      x[2 * 256 + 200] = 0x7FC0;                           // NaN
      std::fill_n(x.begin() + 3 * 256, 256, uint16_t{1});  // subnormal
      const std::vector<float> y = Multiply(*ops, *packed, x);
      for (int64_t i = 0; i < 20; ++i) {
        EXPECT_EQ(y[i], 0.0f);
        EXPECT_TRUE(std::isnan(y[20 + i]));
        EXPECT_TRUE(std::isnan(y[40 + i]));
        EXPECT_LE(std::fabs(y[60 + i]), 1e-30f);
        EXPECT_TRUE(std::isfinite(y[80 + i]));
      }
    }
}

TEST(LinearFp8Parity, DoesNotTakeOtherWeights) {
  for (const OpTable* ops : TablesWithFp8()) {
    Runner runner(*ops);
    const auto group = [&](const Stored& stored) {
      return runner.Pack({&stored.view, 1}, ActivationFormat::kBf16)->fp8().group;
    };
    EXPECT_EQ(group(MakeWeight(WeightFormat::kBf16, 32, 256, 1)), 0);
    EXPECT_EQ(group(MakeWeight(WeightFormat::kInt8, 32, 256, 1)), 0);
    EXPECT_EQ(group(MakeWeight(WeightFormat::kFp8, 32, 256, 1, 1, {DType::kF32, 1, 64})), 0);
    EXPECT_EQ(group(MakeWeight(WeightFormat::kFp8, 32, 256, 1, 1, {DType::kF8E8M0, 1, 32})), 0);
    Stored ordered = MakeWeight(WeightFormat::kFp8, 32, 256, 1);
    TransformInputs(ordered, true, false, 2);
    EXPECT_EQ(group(ordered), 0);
  }
}

}  // namespace
}  // namespace nibble::kernels
