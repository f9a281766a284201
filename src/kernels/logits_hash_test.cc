#include "kernels/logits_hash.h"

#include <gtest/gtest.h>

#include <bit>
#include <random>
#include <set>
#include <vector>

namespace nibble::kernels {
namespace {

uint64_t Hash(const std::vector<float>& logits) { return HashLogits(logits); }

TEST(LogitsHash, SeesOneBitAndTheOrder) {
  EXPECT_NE(Hash({0.0f, 1.0f}), Hash({-0.0f, 1.0f}));
  EXPECT_NE(Hash({0.0f, 1.0f}), Hash({1.0f, 0.0f}));
  EXPECT_NE(Hash({}), Hash({0.0f}));
}

// Every bit of every logit, each alone, and pairs of neighbours swapped: no two hashes are alike.
TEST(LogitsHash, NeighboursDiffer) {
  std::mt19937 random(1);
  std::vector<float> row(500);
  for (float& logit : row) logit = static_cast<float>(random() >> 8) * 0x1p-20f - 8.0f;
  std::set<uint64_t> seen = {Hash(row)};
  size_t variants = 1;
  for (size_t i = 0; i < row.size(); ++i) {
    const float before = row[i];
    for (int bit = 0; bit < 32; ++bit) {
      row[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(before) ^ (1u << bit));
      seen.insert(Hash(row));
      ++variants;
    }
    row[i] = before;
    if (i == 0 || row[i] == row[i - 1]) continue;
    std::swap(row[i], row[i - 1]);
    seen.insert(Hash(row));
    ++variants;
    std::swap(row[i], row[i - 1]);
  }
  EXPECT_EQ(seen.size(), variants);
}

}  // namespace
}  // namespace nibble::kernels
