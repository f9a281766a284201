#include "kernels/cuda/linear/e2m1_order.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

#include "numerics/bf16.h"
#include "numerics/e2m1.h"

namespace nibble::kernels::cuda {
namespace {

struct Words {
  uint32_t of[2] = {};
};

// Columns `codes` (16), a nibble each, the first in the lowest.
Words WordsOf(uint64_t codes) {
  const auto code = [codes](int column) {
    return static_cast<uint32_t>(codes >> (4 * column) & 15u);
  };
  Words words;
  for (int pair = 0; pair < kE2M1Pairs; ++pair)
    AddE2M1(code(2 * pair), code(2 * pair + 1), pair, words.of);
  return words;
}

TEST(E2M1Order, EveryBitOfABlockHasItsOwnPlace) {
  uint32_t seen[2] = {};
  for (int bit = 0; bit < 64; ++bit) {
    const Words words = WordsOf(uint64_t{1} << bit);
    ASSERT_EQ(std::popcount(words.of[0]) + std::popcount(words.of[1]), 1) << bit;
    for (int word = 0; word < 2; ++word) {
      EXPECT_EQ(seen[word] & words.of[word], 0u) << bit;
      seen[word] |= words.of[word];
    }
  }
  EXPECT_EQ(seen[0], ~0u);
  EXPECT_EQ(seen[1], ~0u);
}

TEST(E2M1Order, AllCodesOfAllColumnsComeBack) {
  std::mt19937_64 random(1);
  for (int column = 0; column < 16; ++column)
    for (uint64_t code = 0; code < 16; ++code)
      for (const uint64_t others : {uint64_t{0}, ~uint64_t{0}, random(), random(), random()}) {
        const uint64_t codes = (others & ~(uint64_t{15} << (4 * column))) | code << (4 * column);
        const Words words = WordsOf(codes);
        for (int c = 0; c < 16; ++c) {
          const auto expected = static_cast<uint8_t>(codes >> (4 * c) & 15u);
          EXPECT_EQ(E2M1At(words.of, c), expected) << column << ", " << code << ", at " << c;
          const uint32_t pair = PlaceE2M1(words.of, c / 2);
          const float value = Bf16ToFloat(static_cast<uint16_t>(pair >> (c % 2 * 16)));
          EXPECT_EQ(value, std::ldexp(E2M1ToFloat(expected), -126));
          EXPECT_EQ(std::signbit(value), expected >= 8);
        }
      }
}

}  // namespace
}  // namespace nibble::kernels::cuda
