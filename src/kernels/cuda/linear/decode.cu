#include "kernels/cuda/linear/decode.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/decode_kernels.h"

namespace nibble::kernels::cuda {
namespace {

using decode::kWarps;

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

int TokenTiles(int m) { return m <= 8 ? 1 : m <= 16 ? 2 : m <= 32 ? 4 : 8; }

int Log2Ceil(int value) {
  int shift = 0;
  while (1 << shift < value) ++shift;
  return shift;
}

// Partial sums between two reductions, where several rounds fit.
constexpr int kMaxPartialBytes = 24 * 1024;
constexpr int kMaxRunBytes = 16 * 1024;
// Row tiles between reloads of x, more than 8 tokens.
constexpr int kMaxGroupTiles = 16;

// Bytes of x that should stay in L1 while a CTA goes over its row tiles.
constexpr int kCachedX = 64 * 1024;
constexpr int kCachedXBesideTwoStages = 10 * 1024;

// Up to 8 tokens: a unit is one row tile's slice; many rounds between reductions.
void PlanSmall(const WeightTiles& weight, int m, int tiles, int max_partial_bytes,
               DecodePlan* plan) {
  const int slices = weight.slices();
  plan->slot_shift = Log2Ceil(m);
  const int unit = kTileRows * 4 << plan->slot_shift;
  const int cached = plan->stages == 1 ? kCachedX : kCachedXBesideTwoStages;
  const int x_slices = std::max(kWarps, cached / (kSliceColumns * 2 * m) / kWarps * kWarps);
  if (x_slices >= slices || tiles == 1) {
    plan->chunk_slices = slices;
    plan->group_tiles = tiles;
    plan->run_bytes = 2 * unit;
  } else {
    plan->chunk_slices = x_slices;
    plan->group_tiles = std::min(tiles, kMaxRunBytes / unit);
    plan->run_bytes = plan->group_tiles * unit;
  }
  const int units = plan->group_tiles * std::min(plan->chunk_slices, slices);
  plan->partial_units = kWarps * std::clamp(max_partial_bytes / (kWarps * unit), 1,
                                            std::max(1, CeilDiv(units, kWarps)));
}

// More tokens: a unit is `rows` row tiles, a reduction follows every round. The warps of a round
// share slices of x, where there are row tiles enough.
void PlanLarge(const WeightTiles& weight, int m, int tiles, int rows, int max_group_tiles,
               DecodePlan* plan) {
  const int reduced = std::min(m, 8 * decode::ReducedTokenTiles(plan->token_tiles));
  plan->slot_shift = Log2Ceil(reduced);
  plan->partial_units = kWarps;
  plan->group_tiles = std::min(tiles, max_group_tiles);
  const int unit_rows = CeilDiv(plan->group_tiles, rows);
  int chunk = kWarps;
  while (chunk > 1 && chunk / 2 * unit_rows >= kWarps && chunk * kSliceColumns * 2 * m > kCachedX)
    chunk /= 2;
  plan->chunk_slices = std::min(chunk, weight.slices());
  plan->run_bytes = plan->group_tiles * kTileRows * 4 * (CeilDiv(m, 8) * 8);
}

int SharedBytes(const WeightTiles& weight, const DecodePlan& plan) {
  const int ring = kWarps * plan.stages *
                   decode::StageBytes(weight.format, plan.token_tiles, weight.group_columns);
  const int partials = plan.partial_units *
                       decode::RowTilesOfUnit(weight.format, plan.token_tiles) *
                       (kTileRows * 4 << plan.slot_shift);
  return ring + plan.run_bytes + plan.scale_bytes + partials;
}

// `stages`: of up to 8 tokens. May need more shared memory than there is.
DecodePlan PlanFor(const WeightTiles& weight, int m, int stages, int blocks) {
  const int limit = CurrentDevice().shared_memory_per_block;
  DecodePlan plan;
  plan.blocks = blocks;
  plan.token_tiles = TokenTiles(m);
  plan.stages = plan.token_tiles > 1 ? 2 : stages;
  plan.prepares_x = decode::PreparesX(plan.token_tiles);
  plan.share = weight.row_tiles / blocks;
  plan.larger = weight.row_tiles % blocks;
  const int tiles = plan.share + (plan.larger > 0 ? 1 : 0);
  plan.scale_bytes = 2 * tiles * kTileRows * 4;
  if (plan.token_tiles == 1) {
    for (int partial = kMaxPartialBytes; partial >= 1024; partial /= 2) {
      PlanSmall(weight, m, tiles, partial, &plan);
      if (SharedBytes(weight, plan) <= limit) break;
    }
  } else {
    const int rows = decode::RowTilesOfUnit(weight.format, plan.token_tiles);
    for (int group = kMaxGroupTiles; group >= rows; group -= rows) {
      PlanLarge(weight, m, tiles, rows, group, &plan);
      if (SharedBytes(weight, plan) <= limit) break;
    }
  }
  plan.shared_bytes = SharedBytes(weight, plan);
  return plan;
}

const void* KernelOf(const WeightTiles& weight, const DecodePlan& plan, bool heads = false) {
  switch (weight.format) {
    case TileFormat::kNvfp4:
      return decode::Nvfp4Kernel(plan.token_tiles, plan.stages, heads);
    case TileFormat::kMxfp4:
      return decode::Mxfp4Kernel(plan.token_tiles, plan.stages, heads);
    case TileFormat::kBf16:
      return decode::Bf16Kernel(plan.token_tiles, plan.stages, heads);
    case TileFormat::kFp8:
      return decode::Fp8Kernel(plan.token_tiles, plan.stages, heads);
    case TileFormat::kMxfp8:
      return decode::Mxfp8Kernel(plan.token_tiles, plan.stages, heads);
    case TileFormat::kFp8Groups:
      return decode::Fp8GroupsKernel(plan.token_tiles, plan.stages, heads);
    case TileFormat::kInt4:
      return decode::Int4Kernel(plan.token_tiles, plan.stages, heads);
    case TileFormat::kInt8:
      return decode::Int8Kernel(plan.token_tiles, plan.stages, heads);
  }
  return nullptr;
}

// What the CTAs that share a multiprocessor need; the rest is L1, which keeps x.
void SetSharedMemory(const void* kernel, const DecodePlan& plan) {
  const int resident = plan.token_tiles == 1 ? 2 : 1;
  const int percent = CeilDiv(100 * resident * (plan.shared_bytes + 1024),
                              CurrentDevice().shared_memory_per_block + 1024);
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                       std::min(percent, 100));
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
}

}  // namespace

int DecodeTokensOfLaunch(const WeightTiles& weight) {
  for (const int m : {64, 32, 16})
    if (PlanDecode(weight, m).shared_bytes <= CurrentDevice().shared_memory_per_block) return m;
  return 8;
}

int DecodeTokens(int m) { return 8 * TokenTiles(m); }

bool DecodeTakes(const WeightTiles& weight, const uint16_t* x, int64_t x_stride, int m) {
  return !decode::PreparesX(TokenTiles(m)) && weight.k % kTileColumns == 0 &&
         reinterpret_cast<uintptr_t>(x) % 16 == 0 && x_stride % 8 == 0;
}

DecodePlan PlanDecode(const WeightTiles& weight, int m, int stages) {
  // Two where L1, beside them, still keeps x.
  if (stages == 0) {
    stages = kSliceColumns * 2 * m * weight.slices() <= kCachedXBesideTwoStages ? 2 : 1;
  }
  return PlanFor(weight, m, stages, CurrentDevice().multiprocessors);
}

int DecodeBlocksPerMultiprocessor(const WeightTiles& weight, const DecodePlan& plan) {
  const void* const kernel = KernelOf(weight, plan);
  SetSharedMemory(kernel, plan);
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, decode::kThreads,
                                                plan.shared_bytes);
  return blocks;
}

void LaunchDecode(const DecodeArgs& args, const DecodePlan& plan, void* stream) {
  const void* const kernel = KernelOf(args.weight, plan);
  SetSharedMemory(kernel, plan);
  const auto launchable =
      reinterpret_cast<void (*)(DecodeArgs, DecodePlan)>(const_cast<void*>(kernel));
  LaunchPdl(launchable, dim3(plan.blocks), dim3(decode::kThreads), plan.shared_bytes,
            static_cast<cudaStream_t>(stream), args, plan);
}

void LaunchHeadDecode(const HeadDecodeArgs& args, void* stream) {
  const WeightTiles& weight = args.each.weight;
  const int m = std::min(args.each.m, 16);
  const int blocks =
      std::clamp(CurrentDevice().multiprocessors / args.head_count, 1, weight.row_tiles);
  DecodePlan plan = PlanFor(weight, m, 1, blocks);
  if (plan.shared_bytes > CurrentDevice().shared_memory_per_block)
    plan = PlanFor(weight, 8, 1, blocks);
  const void* const kernel = KernelOf(weight, plan, true);
  SetSharedMemory(kernel, plan);
  const auto launchable =
      reinterpret_cast<void (*)(HeadDecodeArgs, DecodePlan)>(const_cast<void*>(kernel));
  const int token_blocks = CeilDiv(args.each.m, 8 * plan.token_tiles);
  LaunchPdl(launchable, dim3(blocks, args.head_count, token_blocks), dim3(decode::kThreads),
            plan.shared_bytes, static_cast<cudaStream_t>(stream), args, plan);
}

}  // namespace nibble::kernels::cuda
