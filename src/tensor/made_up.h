// Made-up bytes of a tensor: every value is a pure function of (stream, element index), so that any
// part can be made by itself, by any number of threads, on the host or on a GPU, with the same
// bytes everywhere.
//
// Word w of a stream is a mix of (stream, w) (counter mode of splitmix64's finaliser): no state is
// carried along. Thread-safety: pure functions.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/f16.h"
#include "numerics/host_device.h"
#include "tensor/dtype.h"

namespace nibble {

struct MadeUpBytes {
  enum class Kind : uint8_t {
    kBits,        // every bit random: E2M1 and integer codes
    kE4m3Codes,   // every E4M3 code but the NaNs
    kE4m3Scales,  // every E4M3 code without a sign, but the NaN
    kBytes,       // base + (0 .. mask), mask a power of two less 1: scale codes
    kNibbles,     // the same for both halves of a byte: zero points
    kFloats,      // uniform in centre ± spread, BF16, F16 or F32
    kQuotient,    // I32: index / divisor
    kPair,        // I64: first, second
  } kind = Kind::kBits;
  DType dtype = DType::kU8;
  uint8_t base = 0;
  uint8_t mask = 0;
  float centre = 0;
  float spread = 0;
  int64_t first = 0;  // divisor of kQuotient
  int64_t second = 0;
  uint64_t stream = 0;
};

// The rows of a weight, each contiguous.
struct MadeUpRows {
  MadeUpBytes bytes;
  int64_t first = 0;   // byte of the tensor where row 0 begins
  int64_t stride = 0;  // bytes from a row to the next
};

// What a QuantView that stores nothing holds. scales is unused where the format has none.
struct MadeUpWeight {
  MadeUpRows data;
  MadeUpRows scales;
};

// splitmix64's finaliser: every input bit reaches every output bit.
NIBBLE_HD constexpr uint64_t MixBits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

NIBBLE_HD constexpr uint64_t CounterHash(uint64_t stream, uint64_t index) {
  return MixBits(stream + (index + 1) * 0x9E3779B97F4A7C15u);
}

NIBBLE_HD constexpr uint64_t RepeatByte(int byte) {
  return 0x0101010101010101u * static_cast<uint8_t>(byte);
}

// A NaN's code less 1 is the largest number's.
NIBBLE_HD constexpr uint8_t WithoutNan(uint8_t e4m3) {
  return static_cast<uint8_t>(e4m3 - ((e4m3 & 0x7F) == 0x7F ? 1 : 0));
}

// kFloats: of 16 random bits. Both sums are rounded: callers compile without contraction.
struct MadeUpFloats {
  float step;
  float centre;

  NIBBLE_HD constexpr explicit MadeUpFloats(const MadeUpBytes& values)
      : step(values.spread / 32768.0f), centre(values.centre + 0.5f * step) {}
  NIBBLE_HD constexpr float Of(int16_t noise) const {
    return centre + step * static_cast<float>(noise);
  }
};

// Bf16FromFloat of a finite number, of plain steps, for compilers that make vectors of them.
NIBBLE_HD constexpr uint16_t FiniteBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

// Bytes [8 word, 8 word + 8) of the tensor, the first lowest.
NIBBLE_HD constexpr uint64_t MadeUpWord(const MadeUpBytes& values, int64_t word) {
  const auto index = static_cast<uint64_t>(word);
  switch (values.kind) {
    case MadeUpBytes::Kind::kBits:
      return CounterHash(values.stream, index);
    case MadeUpBytes::Kind::kE4m3Codes:
    case MadeUpBytes::Kind::kE4m3Scales: {
      const bool scales = values.kind == MadeUpBytes::Kind::kE4m3Scales;
      const uint64_t codes = CounterHash(values.stream, index) & RepeatByte(scales ? 0x7F : 0xFF);
      uint64_t out = 0;
      for (int at = 0; at < 64; at += 8)
        out |= uint64_t{WithoutNan(static_cast<uint8_t>(codes >> at))} << at;
      return out;
    }
    case MadeUpBytes::Kind::kBytes:
      return (CounterHash(values.stream, index) & RepeatByte(values.mask)) +
             RepeatByte(values.base);
    case MadeUpBytes::Kind::kNibbles:
      return (CounterHash(values.stream, index) & RepeatByte(values.mask * 0x11)) +
             RepeatByte(values.base * 0x11);
    case MadeUpBytes::Kind::kFloats: {
      const MadeUpFloats floats(values);
      uint64_t out = 0;
      if (values.dtype == DType::kF32) {
        const uint64_t noise = CounterHash(values.stream, index / 2) >> (index % 2 * 32);
        for (int i = 0; i < 2; ++i) {
          const float value = floats.Of(static_cast<int16_t>(noise >> (16 * i)));
          out |= uint64_t{std::bit_cast<uint32_t>(value)} << (32 * i);
        }
        return out;
      }
      const uint64_t noise = CounterHash(values.stream, index);
      for (int i = 0; i < 4; ++i) {
        const float value = floats.Of(static_cast<int16_t>(noise >> (16 * i)));
        const uint16_t half = values.dtype == DType::kF16 ? F16FromFloat(value) : FiniteBf16(value);
        out |= uint64_t{half} << (16 * i);
      }
      return out;
    }
    case MadeUpBytes::Kind::kQuotient: {
      const auto low = static_cast<uint32_t>(2 * word / values.first);
      const auto high = static_cast<uint32_t>((2 * word + 1) / values.first);
      return low | uint64_t{high} << 32;
    }
    case MadeUpBytes::Kind::kPair:
      return word == 0   ? static_cast<uint64_t>(values.first)
             : word == 1 ? static_cast<uint64_t>(values.second)
                         : 0;
  }
  return 0;
}

}  // namespace nibble
