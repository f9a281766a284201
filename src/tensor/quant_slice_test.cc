// Every element of a slice equals the source's, whatever the format.
#include "tensor/quant_slice.h"

#include <gtest/gtest.h>

#include <vector>

#include "numerics/bf16.h"

namespace nibble {
namespace {

struct Source {
  std::vector<uint8_t> data, scales, zeros;
  std::vector<float> multiplier;
  QuantView view;
};

// Random codes; scales are bytes that are finite in every scale format used here.
Source Make(WeightFormat format, int64_t n, int64_t k, int64_t block_n, int64_t block_k,
            DType scale_dtype, bool zeros) {
  Source s;
  s.view = {.format = format,
            .n = n,
            .k = k,
            .scale_dtype = scale_dtype,
            .scale_block_n = block_n,
            .scale_block_k = block_k,
            .global_scale = 0.5f};
  s.zeros.resize(zeros ? 1 : 0);
  s.view.zeros = zeros ? s.zeros.data() : nullptr;
  uint32_t seed = 7;
  const auto fill = [&](std::vector<uint8_t>* bytes, int64_t count, uint32_t limit) {
    bytes->resize(count);
    for (uint8_t& byte : *bytes) {
      seed = seed * 1664525u + 1013904223u;
      byte = static_cast<uint8_t>((seed >> 10) % limit);
    }
  };
  const bool is_float = format == WeightFormat::kFp8 || format == WeightFormat::kF16;
  fill(&s.data, s.view.data_bytes(), is_float ? 0x70 : 256);
  fill(&s.scales, s.view.scale_bytes(), 0x70);
  const int64_t groups = ((n + block_n - 1) / block_n) * ((k + block_k - 1) / block_k);
  if (zeros) fill(&s.zeros, groups, 16);
  s.view.data = reinterpret_cast<const std::byte*>(s.data.data());
  s.view.scales = reinterpret_cast<const std::byte*>(s.scales.data());
  s.view.zeros = zeros ? s.zeros.data() : nullptr;
  return s;
}

void ExpectSlice(const QuantView& source, const std::vector<RowRange>& rows, ColumnRange columns) {
  auto slice = SliceWeight(source, rows, columns);
  ASSERT_TRUE(slice) << slice.error().message();
  std::vector<int64_t> expected;
  for (const RowRange& range : rows)
    for (int64_t i = 0; i < range.count; ++i) expected.push_back(range.begin + i * range.step);
  if (rows.empty())
    for (int64_t i = 0; i < source.n; ++i) expected.push_back(i);
  ASSERT_EQ(slice->view.n, static_cast<int64_t>(expected.size()));
  ASSERT_EQ(slice->view.k, columns.count > 0 ? columns.count : source.k);
  for (int64_t i = 0; i < slice->view.n; ++i)
    for (int64_t j = 0; j < slice->view.k; ++j)
      ASSERT_EQ(DequantizeElement(slice->view, i, j),
                DequantizeElement(source, expected[i], columns.begin + j))
          << i << ", " << j;
}

TEST(SliceWeight, KeepsEveryElement) {
  const std::vector<std::vector<RowRange>> selections = {
      {}, {{3, 4}}, {{8, 8}}, {{0, 10, 2}, {1, 10, 2}}, {{9, 2}, {0, 1}, {4, 3}}};
  for (const Source& s : {Make(WeightFormat::kNvfp4, 20, 64, 1, 16, DType::kF8E4M3, false),
                          Make(WeightFormat::kMxfp4, 20, 64, 1, 32, DType::kU8, false),
                          Make(WeightFormat::kFp8, 20, 64, 8, 32, DType::kBF16, false),
                          Make(WeightFormat::kFp8, 20, 64, 1, 64, DType::kBF16, false),
                          Make(WeightFormat::kFp8, 20, 64, 20, 64, DType::kF16, false),
                          Make(WeightFormat::kInt4, 20, 64, 1, 32, DType::kF16, true),
                          Make(WeightFormat::kInt8, 20, 64, 1, 64, DType::kBF16, true),
                          Make(WeightFormat::kF16, 20, 64, 1, 1, DType::kF16, false)}) {
    SCOPED_TRACE(WeightFormatName(s.view.format));
    for (const std::vector<RowRange>& rows : selections) {
      ExpectSlice(s.view, rows, {});
      ExpectSlice(s.view, rows, {32, 32});
    }
  }
}

TEST(SliceWeight, WholeRowsAreNotCopied) {
  const Source s = Make(WeightFormat::kNvfp4, 20, 64, 1, 16, DType::kF8E4M3, false);
  const RowRange rows = {5, 3};
  auto slice = SliceWeight(s.view, {&rows, 1}, {});
  ASSERT_TRUE(slice);
  EXPECT_EQ(slice->owner, nullptr);
  EXPECT_EQ(slice->view.data, s.view.data + 5 * 32);
}

TEST(SliceWeight, RefusesBordersInsideBlocks) {
  const Source s = Make(WeightFormat::kNvfp4, 20, 64, 1, 16, DType::kF8E4M3, false);
  EXPECT_FALSE(SliceWeight(s.view, {}, {8, 32}));
  EXPECT_FALSE(SliceWeight(s.view, {}, {16, 8}));
}

}  // namespace
}  // namespace nibble
