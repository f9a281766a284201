// The inputs over which number encoders are proven, cut into chunks whose outputs are hashed:
//   0      every BF16 value, widened
//   1      every F16 value, widened
//   2      every value of the format and every midpoint of neighbours, ±1 ulp in FP32, both signs
//   3..66  2^26 seeded random FP32 values; of odd chunks the exponents lie in [-15, 16]
// tests/golden/numerics/encodings.txt holds the hashes of what CUDA's host code makes of them. The
// hashes name the chunk that went wrong; ReferenceEncode, a table search written from the formats'
// definitions, then names the input.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace nibble {

struct NumberFormat {
  std::string_view name;
  int mantissa_bits;
  int bias;
  int max_code;  // of finite positive values; the next code stands for overflow
  bool saturates;
  int nan_code;
  uint32_t sign_bit;  // 0: the format has no sign
  bool rounds_down;   // towards zero instead of to nearest, ties to even
};

inline constexpr NumberFormat kNumberFormats[] = {
    {"e2m1", 1, 1, 0x7, true, 0x7, 0x8, false},
    {"e4m3", 3, 7, 0x7E, true, 0x7F, 0x80, false},
    {"e4m3_nosat", 3, 7, 0x7E, false, 0x7F, 0x80, false},
    {"e8m0", 0, 127, 0xFE, true, 0xFF, 0, true},
    {"bf16", 7, 127, 0x7F7F, false, 0x7FFF, 0x8000, false},
    {"f16", 10, 15, 0x7BFF, false, 0x7FFF, 0x8000, false},
};

// Magnitude of a code, and of the code after the largest as if it were a number.
inline double Magnitude(const NumberFormat& format, int code) {
  const int exponent = code >> format.mantissa_bits;
  const int mantissa = code & ((1 << format.mantissa_bits) - 1);
  if (format.mantissa_bits == 0) return std::ldexp(1.0, exponent - format.bias);
  const int implicit = exponent == 0 ? 0 : 1 << format.mantissa_bits;
  return std::ldexp(implicit + mantissa,
                    std::max(exponent, 1) - format.bias - format.mantissa_bits);
}

inline std::vector<double> Magnitudes(const NumberFormat& format) {
  std::vector<double> values;
  for (int code = 0; code <= format.max_code + 1; ++code) values.push_back(Magnitude(format, code));
  return values;
}

// The code of a value by search: nearest, ties to the even code. NaN gives nan_code.
inline uint16_t ReferenceEncode(const NumberFormat& format, const std::vector<double>& magnitudes,
                                float value) {
  if (std::isnan(value)) return static_cast<uint16_t>(format.nan_code);
  const double magnitude = std::abs(static_cast<double>(value));
  auto code = std::ranges::upper_bound(magnitudes, magnitude) - magnitudes.begin() - 1;
  code = std::max<int64_t>(code, 0);  // only E8M0 has no zero
  if (!format.rounds_down && code <= format.max_code) {
    const double below = magnitude - magnitudes[code];
    const double above = magnitudes[code + 1] - magnitude;
    if (above < below || (above == below && code % 2 == 1)) ++code;
  }
  if (format.saturates) code = std::min<int64_t>(code, format.max_code);
  return static_cast<uint16_t>(code | (std::signbit(value) ? format.sign_bit : 0));
}

// All NaN codes become nan_code: producers differ in sign and payload.
inline uint16_t CanonicalCode(const NumberFormat& format, uint16_t code) {
  if (format.max_code == 0x7) return code;  // E2M1 has no NaN
  const uint16_t magnitude = code & (format.sign_bit == 0 ? 0xFF : format.sign_bit - 1);
  const int infinity = format.sign_bit == 0x8000 ? format.max_code + 1 : format.max_code;
  return magnitude > infinity ? static_cast<uint16_t>(format.nan_code) : code;
}

inline constexpr int kRandomChunks = 64;
inline constexpr int kEncodingChunks = 3 + kRandomChunks;
inline constexpr int64_t kRandomChunkSize = int64_t{1} << 20;

inline std::vector<float> BorderInputs(const NumberFormat& format) {
  std::vector<float> inputs;
  const auto add = [&](double value) {
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(value));
    for (const uint32_t near : {bits == 0 ? bits : bits - 1, bits, bits + 1}) {
      inputs.push_back(std::bit_cast<float>(near));
      inputs.push_back(std::bit_cast<float>(near | 0x80000000u));
    }
  };
  const std::vector<double> values = Magnitudes(format);
  for (size_t i = 0; i < values.size(); ++i) {
    add(values[i]);
    if (i + 1 < values.size()) add((values[i] + values[i + 1]) / 2);
  }
  return inputs;
}

inline uint64_t MixBits(uint64_t x) {  // the finaliser of SplitMix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline std::vector<float> RandomInputs(int chunk) {
  std::vector<float> inputs(kRandomChunkSize);
  for (int64_t i = 0; i < kRandomChunkSize; i += 2) {
    const uint64_t index = static_cast<uint64_t>(chunk) * kRandomChunkSize + i;
    const uint64_t random = MixBits((index + 1) * 0x9E3779B97F4A7C15u);
    for (int half = 0; half < 2; ++half) {
      auto bits = static_cast<uint32_t>(random >> (32 * half));
      if (chunk % 2 == 1) bits = (bits & 0x807FFFFFu) | ((112 + ((bits >> 23) & 31)) << 23);
      inputs[i + half] = std::bit_cast<float>(bits);
    }
  }
  return inputs;
}

inline std::vector<float> EncodingInputs(const NumberFormat& format, int chunk) {
  if (chunk == 2) return BorderInputs(format);
  if (chunk > 2) return RandomInputs(chunk - 3);
  std::vector<float> inputs(1 << 16);
  for (uint32_t i = 0; i < inputs.size(); ++i) {
    if (chunk == 0 || (i & 0x7C00) == 0x7C00) {  // also F16's infinities and NaN
      inputs[i] = std::bit_cast<float>(
          chunk == 0 ? i << 16 : (i & 0x8000) << 16 | 0x7F800000 | (i & 0x3FF) << 13);
    } else {
      const double magnitude = Magnitude(kNumberFormats[5], i & 0x7FFF);
      inputs[i] = static_cast<float>((i & 0x8000) != 0 ? -magnitude : magnitude);
    }
  }
  return inputs;
}

// FNV-1a over 64-bit words, the last one padded with zeros.
template <typename T>
uint64_t HashCodes(std::span<const T> codes) {
  const auto bytes = std::as_bytes(codes);
  uint64_t hash = 0xCBF29CE484222325u;
  for (size_t i = 0; i < bytes.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<size_t>(8, bytes.size() - i));
    hash = (hash ^ word) * 0x100000001B3u;
  }
  return hash;
}

}  // namespace nibble
