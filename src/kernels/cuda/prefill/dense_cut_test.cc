// Tiles of dense products cover every row and token once, whatever the shape. No GPU is needed.
#include "kernels/cuda/prefill/dense_cut.h"

#include <gtest/gtest.h>

#include <map>
#include <utility>

namespace nibble::kernels::cuda {
namespace {

TEST(DenseCut, TilesCoverTheProductOnceAndStayWithinIt) {
  // Tiles of prefill.cu and of fp8.cu.
  const std::pair<int, int> shapes[] = {{128, 128}, {128, 64},  {64, 128},
                                        {128, 32},  {128, 176}, {128, 192}};
  for (const auto& [rows, tokens] : shapes) {
    for (const int row_tiles : {1, 7, 8, 9, 150, 9496}) {
      for (const int64_t m : {1, 31, 65, 176, 177, 2047, 2112, 2113, 8192}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << tokens << " of " << row_tiles
                                        << " row tiles x " << m << " tokens");
        WeightTiles weight;
        weight.row_tiles = row_tiles;
        const DenseCut cut(weight, m, rows, tokens);
        ASSERT_GT(cut.count(), 0);
        std::map<std::pair<int, int>, int> seen;
        int64_t covered = 0;
        for (int i = 0; i < cut.count(); ++i) {
          const DenseTile tile = cut.At(i, m);
          ASSERT_GE(tile.row_tile, 0);
          ASSERT_LT(tile.row_tile, row_tiles);
          ASSERT_EQ(tile.row_tile % (rows / kTileRows), 0);
          ASSERT_GE(tile.first_token, 0);
          ASSERT_EQ(tile.first_token % 8, 0);  // groups of tokens as they are laid out
          ASSERT_GT(tile.tokens, 0);
          ASSERT_LE(tile.tokens, tokens);
          ASSERT_LE(tile.first_token + tile.tokens, m);
          ++seen[{tile.row_tile, tile.first_token}];
          covered += tile.tokens;
        }
        ASSERT_EQ(static_cast<int>(seen.size()), cut.count());
        ASSERT_EQ(covered, m * cut.row_blocks);
        ASSERT_GE(int64_t{cut.row_blocks} * rows, int64_t{row_tiles} * kTileRows);
      }
    }
  }
}

TEST(DenseCut, DivisorsDivide) {
  constexpr int kMost = 0x7FFFFFFF;
  for (const int divisor :
       {1, 2, 3, 5, 7, 12, 16, 641, 1187, 65536, 78342, 1 << 30, kMost - 1, kMost}) {
    const Divisor by(divisor);
    ASSERT_EQ(by.divisor(), divisor);
    const int most = kMost / divisor;
    for (const int quotient : {0, 1, 2, most / 3, most - 1, most}) {
      if (quotient < 0 || quotient > most) continue;
      const int n = quotient * divisor;
      ASSERT_EQ(by.Of(n), quotient) << n << " / " << divisor;
      if (n > 0) {
        ASSERT_EQ(by.Of(n - 1), (n - 1) / divisor) << n - 1 << " / " << divisor;
      }
    }
    ASSERT_EQ(by.Of(kMost), kMost / divisor);
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda
