// How turns are planned. No GPU is needed.
#include "kernels/cuda/prefill/turns.h"

#include <gtest/gtest.h>

#include "kernels/cuda/device_facts.h"

namespace nibble::kernels::cuda {
namespace {

class TurnPlanning : public testing::Test {
 protected:
  void SetUp() override {
    before_ = CurrentDevice();
    PoseAs({.multiprocessors = 132, .major = 9, .minor = 0, .shared_memory_per_block = 227 * 1024});
  }
  void TearDown() override { PoseAs(before_); }

  static WeightTiles Tiles(int n, int k) {
    WeightTiles tiles;
    tiles.format = TileFormat::kNvfp4;
    tiles.n = n;
    tiles.k = k;
    tiles.row_tiles = n / kTileRows;
    tiles.x_tiles = tiles.k_tiles = k / kTileColumns;
    tiles.row_tile_bytes = int64_t{tiles.k_tiles} * CodeBytes(tiles.format) +
                           int64_t{tiles.slices()} * ScaleBytes(tiles.format, 0);
    return tiles;
  }

 private:
  DeviceFacts before_;
};

// Of plans that take about as long, the one beside which the next tokens can be laid out. Measured
// on an H200: 10.4 µs instead of 12.3, and 10.7 instead of 11.3.
TEST_F(TurnPlanning, LeavesMultiprocessorsToThePreparation) {
  for (const auto& [n, m] : {std::pair<int, int>{2048, 64}, {4096, 32}}) {
    const TurnPlan plan = BestTurnPlan(Tiles(n, 4096), m);
    EXPECT_EQ(plan.tokens, 32);
    EXPECT_EQ(plan.row_ctas * plan.parts, 64);
  }
}

// But it costs less than to leave half of them idle where K is long.
TEST_F(TurnPlanning, UsesMostMultiprocessorsForLongSums) {
  const TurnPlan plan = BestTurnPlan(Tiles(4096, 14336), 64);
  EXPECT_EQ(plan.row_ctas * plan.parts, 128);
}

}  // namespace
}  // namespace nibble::kernels::cuda
