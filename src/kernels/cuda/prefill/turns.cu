#include "kernels/cuda/prefill/turns.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill/turns_kernels.h"

namespace nibble::kernels::cuda {
namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

constexpr int kGroupTiles = 4;  // row tiles of a row group

// Units of a warpgroup in a pass. A pair deals them out in rounds (turn_pairs.cuh).
double UnitsOfWarpgroup(const WeightTiles& weight, const TurnPlan& plan) {
  const int slices = weight.slices();
  if (plan.splits == 1)
    return static_cast<double>(slices) / TurnsOf(weight.format, plan.tokens, plan.groups);
  const int warpgroups = 2 * PairTurnsOf(weight.format, plan.tokens);
  const int rest = slices % (2 * warpgroups);
  return slices / (2 * warpgroups) * 2 + std::min(2, CeilDiv(rest, warpgroups));
}

// A warpgroup's unit, measured on an H100 where nothing else is in the way.
double UnitMicroseconds(const WeightTiles& weight, const TurnPlan& plan) {
  if (plan.splits == 2) return plan.tokens == 32 || plan.tokens == 128 ? 1.85 : 1.5;
  if (TurnsOf(weight.format, plan.tokens, plan.groups) == 1)
    return plan.tokens == 16 ? 1.35 : plan.tokens == 32 ? 1.42 : 1.75;
  if (plan.tokens < 64) return plan.tokens == 16 ? 1.37 : 1.55;
  return plan.groups == 1 ? 1.8 : 2.4;
}

// What the preparation of tokens takes longer where the launch before, of the same plan, fills all
// multiprocessors but a few: its CTAs, of 8 tokens by 1,024 columns, find no room until that ends.
// An estimate on the low side, measured from 16 to 64 tokens.
double CrowdedMicroseconds(const WeightTiles& weight, int64_t m, const TurnPlan& plan) {
  if (m <= 8) return 0.0;
  const int ctas = CeilDiv(static_cast<int>(m), 8) * CeilDiv(weight.k, 1024);
  const int idle =
      std::max(1, CurrentDevice().multiprocessors - plan.row_ctas * plan.splits * plan.parts);
  return 0.5 * std::max(0.0, std::log2(0.5 * ctas / idle));
}

// On an H100: whichever of memory, L2 and the multiprocessors needs most, and a little of the
// second.
double Microseconds(const WeightTiles& weight, int64_t m, const TurnPlan& plan) {
  constexpr double kPreparation = 4.6;
  constexpr double kLastTotal = 0.4;                      // through the warpgroups of a pair
  constexpr double kMemoryRate = 3.0e6, kL2Rate = 8.0e6;  // bytes per µs
  const int tiles = plan.share + (plan.larger > 0 ? 1 : 0);
  const double units = static_cast<double>(plan.passes) * weight.slices();  // of a CTA or pair
  const double weight_bytes = static_cast<double>(tiles) * weight.row_tile_bytes;
  const double x_bytes = units * plan.tokens * kSliceColumns * 2;
  double needs[] = {static_cast<double>(weight.row_tiles) * weight.row_tile_bytes / kMemoryRate,
                    plan.row_ctas * plan.parts * (weight_bytes + x_bytes) / kL2Rate,
                    plan.passes * UnitsOfWarpgroup(weight, plan) * UnitMicroseconds(weight, plan)};
  std::ranges::sort(needs);
  return kPreparation + (plan.splits > 1 ? kLastTotal : 0.0) + needs[2] +
         (plan.splits > 1 ? 0.1 : 0.25) * needs[1] + CrowdedMicroseconds(weight, m, plan);
}

}  // namespace

std::vector<TurnPlan> TurnPlans(const WeightTiles& weight, int64_t m) {
  std::vector<TurnPlan> plans;
  for (const int tokens : {16, 32, 64, 128})
    for (const int groups : {1, 2, 4})
      for (int splits = 1; splits <= MostSplits(weight.format, tokens, groups); ++splits) {
        TurnPlan plan = {.tokens = tokens, .groups = groups, .splits = splits};
        plan.parts = CeilDiv(static_cast<int>(m), tokens);
        const int most = CurrentDevice().multiprocessors / (plan.parts * splits);
        if (splits == 1 && TurnsOf(weight.format, tokens, groups) == 0) continue;
        if (most == 0) continue;
        if (tokens > 16 && m <= tokens / 2) continue;
        // All CTAs, or as few as have whole row groups.
        const int fewest_tiles = CeilDiv(weight.row_tiles, most);
        const int whole_tiles = CeilDiv(fewest_tiles, kGroupTiles) * kGroupTiles;
        if (whole_tiles <= (groups - 2) * kGroupTiles) continue;
        if (splits > 1 && whole_tiles > groups * kGroupTiles) continue;  // they have one pass
        for (int tiles = fewest_tiles;; tiles = whole_tiles) {
          plan.row_ctas = CeilDiv(weight.row_tiles, tiles);
          plan.share = weight.row_tiles / plan.row_ctas;
          plan.larger = weight.row_tiles % plan.row_ctas;
          const int largest = plan.share + (plan.larger > 0 ? 1 : 0);
          plan.passes = CeilDiv(largest, groups * kGroupTiles);
          // In whole row groups, so that of the last pass as many as possible have nothing to do.
          plan.pass_tiles = CeilDiv(CeilDiv(largest, plan.passes), kGroupTiles) * kGroupTiles;
          plan.microseconds = Microseconds(weight, m, plan);
          plans.push_back(plan);
          if (tiles == whole_tiles) break;
        }
      }
  return plans;
}

TurnPlan BestTurnPlan(const WeightTiles& weight, int64_t m) {
  const std::vector<TurnPlan> plans = TurnPlans(weight, m);
  return *std::ranges::min_element(plans, {}, &TurnPlan::microseconds);
}

void LaunchTurns(const PrefillParams& p, const TurnPlan& plan, void* stream) {
  switch (p.weight.format) {
    case TileFormat::kNvfp4:
      return LaunchNvfp4Turns(p, plan, stream);
    case TileFormat::kMxfp4:
      return LaunchMxfp4Turns(p, plan, stream);
    case TileFormat::kBf16:
      return LaunchBf16Turns(p, plan, stream);
    case TileFormat::kFp8:
      return LaunchFp8Turns(p, plan, stream);
    case TileFormat::kMxfp8:
      return LaunchMxfp8Turns(p, plan, stream);
    default:
      NIBBLE_CHECK(false, "turns: a format without kernels");
  }
}

}  // namespace nibble::kernels::cuda
