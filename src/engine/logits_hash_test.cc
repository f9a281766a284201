#include "engine/logits_hash.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace nibble::engine {
namespace {

std::string Hash(const std::vector<float>& logits) { return FormatLogitsHash(HashLogits(logits)); }

// Expected values: xxhash.xxh64(struct.pack("<nf", ...), seed=0) of PyPI's xxhash 3.
TEST(LogitsHash, IsXxh64OfTheBits) {
  EXPECT_EQ(Hash({}), "ef46db3751d8e999");
  EXPECT_EQ(Hash({1.0f}), "7b54265d12bf1ccd");
  EXPECT_EQ(Hash({0.0f, -0.0f, 1.5f, -2.25f, std::numeric_limits<float>::infinity()}),
            "614c09f94ef402ee");
  std::vector<float> ramp(1000);
  for (size_t i = 0; i < ramp.size(); ++i) ramp[i] = static_cast<float>(i) / 8;
  EXPECT_EQ(Hash(ramp), "646117d2829c60fb");
}

TEST(LogitsHash, SeesOneBitAndTheOrder) {
  EXPECT_NE(Hash({0.0f, 1.0f}), Hash({-0.0f, 1.0f}));
  EXPECT_NE(Hash({0.0f, 1.0f}), Hash({1.0f, 0.0f}));
}

}  // namespace
}  // namespace nibble::engine
