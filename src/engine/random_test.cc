#include "engine/random.h"

#include <gtest/gtest.h>

#include <set>

namespace nibble::engine {
namespace {

// Known answers published with the generator (Random123, kat_vectors).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(UniformDraw, IsUniformAndDependsOnEveryArgument) {
  std::set<double> draws;
  double sum = 0;
  int buckets[10] = {};
  for (uint64_t seed = 0; seed < 10; ++seed)
    for (int32_t choice = 0; choice < 10; ++choice)
      for (int64_t position = 0; position < 100; ++position) {
        const double draw = UniformDraw(seed, choice, position);
        ASSERT_GE(draw, 0.0);
        ASSERT_LT(draw, 1.0);
        draws.insert(draw);
        sum += draw;
        ++buckets[static_cast<int>(draw * 10)];
      }
  EXPECT_EQ(draws.size(), 10'000u);
  EXPECT_NEAR(sum / 10'000, 0.5, 0.02);
  for (const int count : buckets) EXPECT_NEAR(count, 1000, 150);
  static_assert(UniformDraw(7, 1, 2) == UniformDraw(7, 1, 2));
}

}  // namespace
}  // namespace nibble::engine
