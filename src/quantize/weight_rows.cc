#include "quantize/weight_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "numerics/bf16.h"

namespace nibble::quantize {
namespace {

// As integers magnitudes compare like the floats, with NaN above infinity.
uint32_t LargestBits(const float* values, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i)
    largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7FFFFFFFu);
  return largest;
}

uint32_t LargestBf16Bits(const std::byte* data, int64_t count) {
  uint16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data + 2 * i, 2);
    largest = std::max<uint16_t>(largest, bits & 0x7FFFu);
  }
  return static_cast<uint32_t>(largest) << 16;
}

}  // namespace

void WeightRows::Row(int64_t row, float* out, float* scratch) const {
  const QuantView& weight = view();
  if (weight.column_order == nullptr && weight.input_multiplier == nullptr)
    return DequantizeRow(weight, row, out);
  DequantizeRow(weight, row, scratch);
  for (int64_t j = 0; j < weight.k; ++j) {
    const int64_t column = weight.column_order != nullptr ? weight.column_order[j] : j;
    const float multiplier = weight.input_multiplier != nullptr ? weight.input_multiplier[j] : 1;
    out[column] = scratch[j] * multiplier;
  }
}

float WeightRows::LargestMagnitude(ThreadPool& pool) const {
  std::vector<uint32_t> largest(pool.threads(), 0);
  pool.ParallelFor(n(), 16, [&](int64_t begin, int64_t end, int thread) {
    if (view().format == WeightFormat::kBf16 && view().input_multiplier == nullptr) {
      largest[thread] = LargestBf16Bits(view().data + 2 * begin * k(), (end - begin) * k());
      return;
    }
    std::vector<float> row(k()), scratch(k());
    for (int64_t i = begin; i < end; ++i) {
      Row(i, row.data(), scratch.data());
      largest[thread] = std::max(largest[thread], LargestBits(row.data(), k()));
    }
  });
  return std::bit_cast<float>(*std::ranges::max_element(largest));
}

}  // namespace nibble::quantize
