// The arithmetic and the fragments of the block-scaled FP4 MMA m16n8k64 (SM 12.x), as functions
// that the host and GPUs share: D (16, 8) = A (16, 64) B (64, 8) + C with E2M1 operands and one
// UE4M3 scale per row and group of 16 columns. block_scaled_mma.cuh executes it,
// block_scaled_emulator.h emulates it.
//
// Lane t = 4 g + q. A register holds eight codes, the first in the lowest nibble:
//   A   a0 = row g, columns 8 q ..; a1 = row g + 8, the same; a2 = row g, columns 32 + 8 q ..;
//       a3 = row g + 8, these
//   B   b0 = rows 8 q .. of column g; b1 = rows 32 + 8 q .. of it
//   C   c0, c1 = row g, columns 2 q, 2 q + 1; c2, c3 = row g + 8, the same
// A scale register holds the scales of groups 0..3, group 0 in the lowest byte. Not every lane's
// register is read: of each quad, those of A (thread selector s in {0, 1}) in lanes q = 2 s, for
// row g, and 2 s + 1, for row g + 8; that of B (s in 0..3) in lane q = s, for column g.
//
// Arithmetic: a published model of the instruction (Xie et al., "MMA-Sim", arXiv 2511.10909). Sums
// of 16 products are exact. They, times the scales' significands, and C are aligned to the largest
// exponent among those of C and the scales' products, truncated to 35 fractional bits, added, and
// truncated to FP32. Not compared with silicon by us.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "numerics/e2m1.h"
#include "numerics/host_device.h"

namespace nibble::kernels::cuda::ptx {

inline constexpr int kScaleGroup = 16;
inline constexpr int kScaleGroups = 4;

struct FragmentPlace {
  int row;
  int column;
};

// Of the v-th code (0..31) of lane t's A: row and k.
NIBBLE_HD constexpr FragmentPlace BlockScaledA(int lane, int v) {
  return {lane / 4 + v / 8 % 2 * 8, lane % 4 * 8 + v % 8 + v / 16 * 32};
}
// Of the v-th code (0..15) of lane t's B: k and n.
NIBBLE_HD constexpr FragmentPlace BlockScaledB(int lane, int v) {
  return {lane % 4 * 8 + v % 8 + v / 8 * 32, lane / 4};
}
// Of c[v].
NIBBLE_HD constexpr FragmentPlace BlockScaledC(int lane, int v) {
  return {lane / 4 + v / 2 * 8, lane % 4 * 2 + v % 2};
}
// The lane whose register scales a row of A, and a column of B.
NIBBLE_HD constexpr int ScaleLaneA(int row, int selector) {
  return row % 8 * 4 + selector * 2 + row / 8;
}
NIBBLE_HD constexpr int ScaleLaneB(int column, int selector) { return column * 4 + selector; }

// 4 * the dot product of eight codes.
NIBBLE_HD constexpr int DotE2M1(uint32_t a, uint32_t b) {
  int sum = 0;
  for (int i = 0; i < 32; i += 4) sum += E2M1Doubled(a >> i & 15u) * E2M1Doubled(b >> i & 15u);
  return sum;
}

namespace block_scaled {

inline constexpr int kFractionBits = 35;
inline constexpr int kSmallestExponent = -126;

// value = significand * 2^exponent.
struct Term {
  int64_t significand;
  int exponent;  // of the unit that the significand's integer bits count
  int bits;      // of the significand's fraction
};

// Truncated to kFractionBits below 2^largest.
NIBBLE_HD constexpr int64_t Align(const Term& term, int largest) {
  const int shift = kFractionBits - term.bits - (largest - term.exponent);
  const int64_t magnitude = term.significand < 0 ? -term.significand : term.significand;
  const int64_t aligned = shift >= 0 ? magnitude << shift : shift > -63 ? magnitude >> -shift : 0;
  return term.significand < 0 ? -aligned : aligned;
}

NIBBLE_HD constexpr Term TermOf(float c) {
  const uint32_t bits = std::bit_cast<uint32_t>(c);
  const int exponent = static_cast<int>(bits >> 23 & 255u);
  const int64_t fraction = bits & 0x7FFFFFu;
  const int64_t magnitude = exponent == 0 ? fraction : fraction | 0x800000;
  if (magnitude == 0) return {0, kSmallestExponent, 23};
  return {bits >> 31 != 0 ? -magnitude : magnitude, (exponent == 0 ? 1 : exponent) - 127, 23};
}

NIBBLE_HD constexpr int SignificandOf(uint32_t scale) {
  return static_cast<int>(scale & 7u) | ((scale & 0x78u) != 0 ? 8 : 0);
}
NIBBLE_HD constexpr int ExponentOf(uint32_t scale) {
  const int exponent = static_cast<int>(scale >> 3 & 15u);
  return (exponent == 0 ? 1 : exponent) - 7;
}

// `dot`: 4 * the group's sum of products.
NIBBLE_HD constexpr Term TermOf(int dot, uint32_t scale_a, uint32_t scale_b) {
  const int significand = dot * SignificandOf(scale_a) * SignificandOf(scale_b);
  if (significand == 0) return {0, kSmallestExponent, 8};
  return {significand, ExponentOf(scale_a) + ExponentOf(scale_b), 8};
}

// sum * 2^(exponent - kFractionBits), truncated.
NIBBLE_HD constexpr float Truncate(int64_t sum, int exponent) {
  uint64_t magnitude = sum < 0 ? 0 - static_cast<uint64_t>(sum) : static_cast<uint64_t>(sum);
  if (magnitude == 0) return 0.0f;
#ifdef __CUDA_ARCH__
  const int width = 64 - __clzll(static_cast<long long>(magnitude));
#else
  const int width = static_cast<int>(std::bit_width(magnitude));
#endif
  const int unit = exponent - kFractionBits;
  const int top = unit + width - 1;  // the exponent of the highest bit
  const int last = top < kSmallestExponent ? kSmallestExponent - 23 : top - 23;
  magnitude = last >= unit ? magnitude >> (last - unit) : magnitude << (unit - last);
  uint32_t bits = static_cast<uint32_t>(magnitude);
  if (top > 127) {
    bits = 0x7F800000u;
  } else if (top >= kSmallestExponent) {
    bits = (bits & 0x7FFFFFu) | static_cast<uint32_t>(top + 127) << 23;
  }
  return std::bit_cast<float>(bits | (sum < 0 ? 0x80000000u : 0u));
}

NIBBLE_HD constexpr bool HasNan(uint32_t scales) {
  for (int i = 0; i < 32; i += 8)
    if ((scales >> i & 0x7Fu) == 0x7Fu) return true;
  return false;
}

}  // namespace block_scaled

// One element of D. dots[j]: 4 * the sum of products of group j; scales: as in the registers.
NIBBLE_HD constexpr float BlockScaledSum(float c, const int (&dots)[kScaleGroups],
                                         uint32_t scales_a, uint32_t scales_b) {
  using namespace block_scaled;
  if (HasNan(scales_a) || HasNan(scales_b) || !(c - c == 0.0f)) {
    const bool infinite = c == c && !HasNan(scales_a) && !HasNan(scales_b);
    return infinite ? c : std::numeric_limits<float>::quiet_NaN();
  }
  Term terms[kScaleGroups + 1] = {};
  terms[kScaleGroups] = TermOf(c);
  int largest = terms[kScaleGroups].exponent;
  for (int j = 0; j < kScaleGroups; ++j) {
    terms[j] = TermOf(dots[j], scales_a >> (8 * j), scales_b >> (8 * j));
    if (terms[j].exponent > largest) largest = terms[j].exponent;
  }
  int64_t sum = 0;
  for (const Term& term : terms) sum += Align(term, largest);
  return Truncate(sum, largest);
}

}  // namespace nibble::kernels::cuda::ptx
