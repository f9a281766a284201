// How the E2M1 codes of a row's block of 16 columns lie in its two words, so that few instructions
// decode them: pure functions for host and GPUs.
//
// Pair p (0..7) is columns 2 p and 2 p + 1. A decoded pair is two BF16, the even column in the low
// half, of the code's value * 2^-126: sign at bit 15, exponent, exponent and mantissa at bits 8, 7,
// 6 of a half. Three pairs of a word stand there once it is turned, which leaves bits 0, 1, 9, 10
// of its halves; what both words have left is put into one, "the rest", for the two other pairs:
//
//   pairs   of       turned       bits of a half: sign; exponent, exponent, mantissa
//   0, 4    a word   -            15; 8, 7, 6
//   1, 5    a word   left by 4    11; 4, 3, 2
//   2, 6    a word   right by 6   5 of the other half; 14, 13, 12
//   3       rest     left by 6    9; 2, 1, 0
//   7       rest     right by 4   3 of the other half; 12, 11, 10
//
// Pairs 0..3 are of word 0, 4..7 of word 1, but for what the rest mixes: of it, bits 0, 1, 9, 10 of
// the halves are those of word 0, and bits 2, 3, 11, 12 are these of word 1.
#pragma once

#include <cstdint>

#include "numerics/host_device.h"

namespace nibble::kernels::cuda {

inline constexpr int kE2M1Pairs = 8;  // of a row's block

namespace e2m1_order {

inline constexpr uint32_t kPlaced = 0x81C081C0u;
inline constexpr uint32_t kOfFirstWord = 0x06030603u;  // in the rest

NIBBLE_HD constexpr uint32_t Rest(const uint32_t (&words)[2]) {
  const uint32_t second = words[1] << 2;
#ifdef __CUDA_ARCH__
  // What the compiler makes of the line below takes twice as many instructions.
  uint32_t rest;
  asm("lop3.b32 %0, %1, %2, %3, 0xE4;"
      : "=r"(rest)
      : "r"(words[0]), "r"(second), "r"(kOfFirstWord));
  return rest;
#else
  return (words[0] & kOfFirstWord) | (second & ~kOfFirstWord);
#endif
}

// The word of pair `pair`, turned so that it stands right, or back. Left turns are shifts in the
// decoder: nothing that is kept comes around.
NIBBLE_HD constexpr uint32_t Turn(uint32_t word, int pair) {
  switch (pair) {
    case 0:
    case 4:
      return word;
    case 1:
    case 5:
      return word << 4;
    case 3:
      return word << 6;
    case 7:
      return word >> 4 | word << 28;
    default:
      return word >> 6 | word << 26;
  }
}
NIBBLE_HD constexpr uint32_t TurnBack(uint32_t word, int pair) {
  switch (pair) {
    case 0:
    case 4:
      return word;
    case 1:
    case 5:
      return word >> 4;
    case 3:
      return word >> 6;
    case 7:
      return word << 4 | word >> 28;
    default:
      return word << 6 | word >> 26;
  }
}

}  // namespace e2m1_order

// A pair of a block, value * 2^-126.
NIBBLE_HD constexpr uint32_t PlaceE2M1(const uint32_t (&words)[2], int pair) {
  namespace order = e2m1_order;
  const uint32_t word = pair % 4 == 3 ? order::Rest(words) : words[pair / 4];
  return order::Turn(word, pair) & order::kPlaced;
}

// Adds the codes of a pair to words where its bits are zero.
NIBBLE_HD constexpr void AddE2M1(uint32_t even, uint32_t odd, int pair, uint32_t (&words)[2]) {
  namespace order = e2m1_order;
  const uint32_t placed = (even >> 3 << 15 | (even & 7) << 6) | (odd >> 3 << 15 | (odd & 7) << 6)
                                                                    << 16;
  const uint32_t word = order::TurnBack(placed, pair);
  if (pair % 4 == 3) {
    words[0] |= word & order::kOfFirstWord;
    words[1] |= (word & ~order::kOfFirstWord) >> 2;
  } else {
    words[pair / 4] |= word;
  }
}

// The code of a column, 0..15.
NIBBLE_HD constexpr uint8_t E2M1At(const uint32_t (&words)[2], int column) {
  const uint32_t half = PlaceE2M1(words, column / 2) >> (column % 2 * 16);
  return static_cast<uint8_t>((half >> 15 & 1) << 3 | (half >> 6 & 7));
}

}  // namespace nibble::kernels::cuda
