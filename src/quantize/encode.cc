#include "quantize/encode.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kGrain = 4;  // rows

EncodeError RowError(const float* row, const float* back, int64_t k) {
  EncodeError error;
  for (int64_t j = 0; j < k; ++j) {
    const double difference = static_cast<double>(row[j]) - back[j];
    error.squared += difference * difference;
    error.power += static_cast<double>(row[j]) * row[j];
    error.largest = std::max(error.largest, std::abs(difference));
    error.amax = std::max(error.amax, std::abs(row[j]));
  }
  return error;
}

EncodeError Sum(const std::vector<EncodeError>& rows) {
  EncodeError sum;
  for (const EncodeError& row : rows) {
    sum.squared += row.squared;
    sum.power += row.power;
    sum.largest = std::max(sum.largest, row.largest);
    sum.amax = std::max(sum.amax, row.amax);
  }
  return sum;
}

bool IsZero(const std::byte* codes, int64_t bytes) {
  return std::all_of(codes, codes + bytes,
                     [](std::byte pair) { return (pair & std::byte{0x77}) == std::byte{0}; });
}

constexpr int64_t kMxBytes = kMxfp4Block / 2;
constexpr int kTopShift = 8;      // the top block's scale is 2^8
constexpr int kLowestShift = -9;  // E4M3's smallest number is 2^-9

// One block of 32 under one exponent, as two of 16. Returns whether it had to be rounded.
bool ConvertBlock(const std::byte* from, int exponent, int top, float tensor_scale, uint8_t* codes,
                  uint8_t* scales) {
  std::memcpy(codes, from, kMxBytes);
  const int shift = exponent - top + kTopShift;
  if (IsZero(from, kMxBytes)) {
    scales[0] = scales[1] = E4M3FromFloat(1.0f);
    return false;
  }
  if (shift >= kLowestShift) {
    scales[0] = scales[1] = E4M3FromFloat(std::ldexp(1.0f, shift));
    return false;
  }
  float values[kMxfp4Block];
  const auto* stored = reinterpret_cast<const uint8_t*>(from);
  for (int i = 0; i < kMxfp4Block; ++i)
    values[i] = Mxfp4Dequantize(UnpackE2M1(stored, i), static_cast<uint8_t>(exponent));
  scales[0] = Nvfp4QuantizeBlockMax(values, tensor_scale, codes);
  scales[1] = Nvfp4QuantizeBlockMax(values + kNvfp4Block, tensor_scale, codes + kMxBytes / 2);
  return true;
}

}  // namespace

double EncodeError::relative() const { return power > 0 ? std::sqrt(squared / power) : 0; }

double EncodeError::largest_relative() const { return amax > 0 ? largest / amax : 0; }

Encoded EncodeRows(const WeightRows& rows, const Encoder& encoder,
                   std::span<const float> pre_quant_scale, ThreadPool& pool) {
  const int64_t n = rows.n(), k = rows.k();
  Encoded out;
  out.codes.resize(n * encoder.code_bytes());
  out.scales.resize(n * encoder.scale_bytes());
  std::vector<EncodeError> errors(n);
  pool.ParallelFor(n, kGrain, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(k), scaled(k), back(k);
    for (int64_t i = begin; i < end; ++i) {
      rows.Row(i, row.data(), scaled.data());
      uint8_t* codes = out.codes.data() + i * encoder.code_bytes();
      uint8_t* scales = out.scales.data() + i * encoder.scale_bytes();
      if (pre_quant_scale.empty()) {
        encoder.EncodeRow(row.data(), codes, scales, back.data());
      } else {
        for (int64_t j = 0; j < k; ++j) scaled[j] = row[j] / pre_quant_scale[j];
        encoder.EncodeRow(scaled.data(), codes, scales, back.data());
        for (int64_t j = 0; j < k; ++j) back[j] *= pre_quant_scale[j];
      }
      errors[i] = RowError(row.data(), back.data(), k);
    }
  });
  out.error = Sum(errors);
  return out;
}

int TopExponent(const QuantView& view) {
  int top = 0;
  for (int64_t block = 0; block < view.n * view.k / kMxfp4Block; ++block) {
    const int exponent = std::to_integer<int>(view.scales[block]);
    if (exponent > top && !IsZero(view.data + block * kMxBytes, kMxBytes)) top = exponent;
  }
  return top;
}

FromMxfp4 EncodeFromMxfp4(const QuantView& view, int top, ThreadPool& pool) {
  constexpr int kBias = 127, kSmallestNormal = -126;
  // So that the tensor scale stays a normal number.
  top = std::max(top, kBias + kSmallestNormal + kTopShift);
  FromMxfp4 out;
  out.tensor_scale = std::ldexp(1.0f, top - kBias - kTopShift);
  out.encoded.codes.resize(view.n * view.k / 2);
  out.encoded.scales.resize(view.n * view.k / kNvfp4Block);
  std::vector<EncodeError> errors(view.n);
  std::atomic<int64_t> rounded{0};
  pool.ParallelFor(view.n, kGrain, [&](int64_t begin, int64_t end, int) {
    const int64_t blocks = view.k / kMxfp4Block;
    std::vector<float> row(view.k), back(view.k);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t block = i * blocks; block < (i + 1) * blocks; ++block) {
        rounded +=
            ConvertBlock(view.data + block * kMxBytes, std::to_integer<int>(view.scales[block]),
                         top, out.tensor_scale, out.encoded.codes.data() + block * kMxBytes,
                         out.encoded.scales.data() + 2 * block);
      }
      QuantView made = view;
      made.format = WeightFormat::kNvfp4;
      made.data = reinterpret_cast<const std::byte*>(out.encoded.codes.data());
      made.scales = reinterpret_cast<const std::byte*>(out.encoded.scales.data());
      made.global_scale = out.tensor_scale;
      DequantizeRow(view, i, row.data());
      DequantizeRow(made, i, back.data());
      errors[i] = RowError(row.data(), back.data(), view.k);
    }
  });
  out.rounded_blocks = rounded;
  out.encoded.error = Sum(errors);
  return out;
}

}  // namespace nibble::quantize
