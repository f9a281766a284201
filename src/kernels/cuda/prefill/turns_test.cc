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

// Of plans that take about as long, the one beside which the next tokens can be laid out.
TEST_F(TurnPlanning, LeavesMultiprocessorsToThePreparation) {
  const TurnPlan plan = BestTurnPlan(Tiles(2048, 4096), 64);
  EXPECT_EQ(plan.tokens, 64);
  EXPECT_EQ(plan.row_ctas * plan.splits * plan.parts, 64);
}

// But it costs less than to leave half of them idle where K is long.
TEST_F(TurnPlanning, UsesMostMultiprocessorsForLongSums) {
  const TurnPlan plan = BestTurnPlan(Tiles(4096, 14336), 64);
  EXPECT_EQ(plan.row_ctas * plan.splits * plan.parts, 128);
}

// Where rows are too few for all multiprocessors.
TEST_F(TurnPlanning, SplitsSumsOfFewRows) {
  for (const int m : {16, 32, 64}) EXPECT_EQ(BestTurnPlan(Tiles(4096, 14336), m).splits, 2);
  EXPECT_EQ(BestTurnPlan(Tiles(2048, 4096), 128).splits, 2);
  EXPECT_EQ(BestTurnPlan(Tiles(8192, 8192), 32).splits, 1);
}

}  // namespace
}  // namespace nibble::kernels::cuda
