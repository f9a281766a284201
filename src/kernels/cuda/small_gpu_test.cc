// GPUs whose blocks have 99 KB of shared memory (8.9, 12.x; GB10 has 48 multiprocessors): every
// launch is planned within it. No GPU is needed for that.
//
// With NIBBLE_POSE_AS=89 in the environment a large GPU runs all tests of this program with such
// plans, and the last of them looks at what launches have asked for.
#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/device_facts.h"
#include "kernels/cuda/linear/decode.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/route.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kSmall = 99 * 1024;
constexpr DeviceFacts kAda = {
    .multiprocessors = 128, .major = 8, .minor = 9, .shared_memory_per_block = kSmall};
constexpr DeviceFacts kGb10 = {
    .multiprocessors = 48, .major = 12, .minor = 1, .shared_memory_per_block = kSmall};

// Before anything asks for the facts.
const bool poses = [] {
  const char* wanted = std::getenv("NIBBLE_POSE_AS");
  if (wanted == nullptr || std::string_view(wanted) != "89") return false;
  DeviceFacts facts = kAda;
  facts.multiprocessors = 48;
  PoseAs(facts);
  return true;
}();

class SmallGpu : public testing::TestWithParam<DeviceFacts> {
 protected:
  void SetUp() override {
    before_ = CurrentDevice();
    PoseAs(GetParam());
  }
  void TearDown() override { PoseAs(before_); }

 private:
  DeviceFacts before_;
};

INSTANTIATE_TEST_SUITE_P(Facts, SmallGpu, testing::Values(kAda, kGb10), [](const auto& info) {
  return std::to_string(info.param.major) + std::to_string(info.param.minor);
});

constexpr TileFormat kFormats[] = {TileFormat::kNvfp4, TileFormat::kMxfp4, TileFormat::kBf16,
                                   TileFormat::kFp8,   TileFormat::kMxfp8, TileFormat::kFp8Groups,
                                   TileFormat::kInt4,  TileFormat::kInt8};

WeightTiles Tiles(TileFormat format, int32_t n, int32_t k) {
  WeightTiles tiles;
  tiles.format = format;
  tiles.n = n;
  tiles.k = k;
  tiles.row_tiles = (n + kTileRows - 1) / kTileRows;
  tiles.x_tiles = tiles.k_tiles = (k + kTileColumns - 1) / kTileColumns;
  tiles.group_columns = HasGroups(format) ? 32 : 0;  // the most scales
  tiles.row_tile_bytes = int64_t{tiles.k_tiles} * CodeBytes(format) +
                         int64_t{tiles.slices()} * ScaleBytes(format, tiles.group_columns);
  return tiles;
}

TEST_P(SmallGpu, LinearsFit) {
  for (const TileFormat format : kFormats)
    for (const int n : {16, 128, 2048, 4096, 28672, 151936, 262208})
      for (const int k : {64, 576, 2048, 5120, 8192, 16384, 28672}) {
        const WeightTiles weight = Tiles(format, n, k);
        for (const bool norms : {false, true})
          for (int tokens = 1; tokens <= 64; ++tokens) {
            const int m = DecodeTokensOfLaunch(weight, tokens);
            ASSERT_TRUE(m >= std::min(tokens, 8) && m <= tokens);
            if (norms && !NormsInDecode(weight, {}, m)) continue;
            const DecodePlan plan = PlanDecode(weight, m, norms);
            ASSERT_LE(plan.shared_bytes, kSmall) << "format " << static_cast<int>(format) << ", "
                                                 << n << " x " << k << ", " << m << " tokens";
          }
      }
}

// Widths of experts of published models, gate and up of odd ones in the same row tiles.
TEST_P(SmallGpu, ExpertsFit) {
  struct Widths {
    int32_t d, f, experts, top_k, shared_f;
  };
  for (const TileFormat format : kFormats)
    for (const Widths& w : {Widths{2048, 768, 128, 8, 0},
                            {2048, 512, 512, 10, 512},
                            {2880, 2880, 128, 4, 0},
                            {4096, 14336, 8, 2, 0},
                            {7168, 2048, 256, 8, 2048},
                            {5120, 8192, 16, 1, 8192},
                            {4096, 1536, 128, 8, 0},
                            {2688, 1856, 128, 6, 3712},
                            {6144, 16384, 8, 2, 0},
                            {80, 48, 9, 3, 0}})
      for (const int64_t t : {1, 2, 7, 16, 64, 512}) {
        moe::PhaseParams gate_up = {.phase = moe::Phase::kGateUp,
                                    .outputs = w.f,
                                    .shared_outputs = w.shared_f,
                                    .straddles = w.f % kTileRows != 0,
                                    .t = t,
                                    .group_rows = 8};
        gate_up.max_groups = moe::MaxGroups(t, w.experts, w.top_k, w.shared_f > 0, 8);
        moe::PhaseParams down = gate_up;
        down.phase = moe::Phase::kDown;
        down.outputs = w.d;
        down.shared_outputs = w.shared_f > 0 ? w.d : 0;
        gate_up.routed.Add(Tiles(format, 2 * w.f, w.d));
        down.routed.Add(Tiles(format, w.d, w.f));
        if (w.shared_f > 0) {
          gate_up.shared.Add(Tiles(format, 2 * w.shared_f, w.d));
          down.shared.Add(Tiles(format, w.d, w.shared_f));
        }
        SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(format) << ", " << w.d
                                        << " x " << w.f << ", " << t << " tokens");
        EXPECT_TRUE(moe::PhaseFits(gate_up));
        EXPECT_TRUE(moe::PhaseFits(down));
      }
}

// As many columns as PreparedExperts takes there.
TEST_P(SmallGpu, TheWidestExpertsFit) {
  for (const TileFormat format : kFormats) {
    moe::PhaseParams gate_up = {.phase = moe::Phase::kGateUp,
                                .outputs = 1000,
                                .straddles = true,
                                .t = 512,
                                .group_rows = 8};
    gate_up.max_groups = moe::MaxGroups(512, 64, 8, false, 8);
    moe::PhaseParams down = gate_up;
    down.phase = moe::Phase::kDown;
    gate_up.routed.Add(Tiles(format, 2000, moe::kMaxGateUpSlicesOfSmall * kSliceColumns));
    down.routed.Add(Tiles(format, 1000, moe::kMaxDownSlicesOfSmall * kSliceColumns));
    EXPECT_TRUE(moe::PhaseFits(gate_up)) << static_cast<int>(format);
    EXPECT_TRUE(moe::PhaseFits(down)) << static_cast<int>(format);
  }
}

// MLA's latent row of 512 + 64 is the widest of published models.
TEST_P(SmallGpu, LatentAttentionFits) { EXPECT_GE(MaxHeadDim(), 576); }

TEST(LargeGpu, AttentionTakesEveryHead) {
  const DeviceFacts before = CurrentDevice();
  PoseAs({.multiprocessors = 132, .major = 9, .minor = 0, .shared_memory_per_block = 227 * 1024});
  EXPECT_EQ(MaxHeadDim(), kMaxHeadDim);
  PoseAs(before);
}

// After all others: tests run in the order in which they are linked, environments last.
class AskedForNoMore final : public testing::Environment {
 public:
  void TearDown() override {
    if (!poses) return;
    EXPECT_LE(LargestLaunch(), static_cast<size_t>(kSmall));
  }
};
const auto* const asked_for_no_more = testing::AddGlobalTestEnvironment(new AskedForNoMore);

}  // namespace
}  // namespace nibble::kernels::cuda
