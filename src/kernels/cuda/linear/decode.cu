#include "kernels/cuda/linear/decode.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/decode_kernels.h"
#include "kernels/cuda/norm/norm.h"
#include "kernels/cuda/shared_memory_split.h"

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

// Shared memory of a multiprocessor that up to 8 tokens use, where the rest is L1, which keeps x.
int SharedOfMultiprocessor(int m) { return m == 1 ? kSplitOfOneToken : kSplitOfFewTokens; }

// Weights from here on have a multiprocessor's slots to themselves: behind a small kernel, two CTAs
// of a launch would share one multiprocessor while others stand idle, and the launch would take as
// long as those two. What a second launch could load ahead is little beside so many bytes.
constexpr int64_t kLoneBytes = int64_t{24} << 20;

}  // namespace

bool IsLone(const WeightTiles& weight) {
  return weight.row_tiles * weight.row_tile_bytes >= kLoneBytes;
}

namespace {

bool MayStage(const WeightTiles& weight, int m) {
  return TokenTiles(m) == 1 && weight.k % kTileColumns == 0;
}

// Whether a lone weight has two CTAs on every multiprocessor: one reads while the other waits for
// x, norms it or adds up, and wherever they start, none is left out. Registers admit no third. The x
// of several tokens, and FP32's planes, which all meet the same x, leave no room for that.
bool PairsUp(const WeightTiles& weight, int m) {
  return m == 1 && IsLone(weight) && MayStage(weight, m) && weight.x_tiles == weight.k_tiles &&
         HasLargeSharedMemory();
}

int BlocksOf(const WeightTiles& weight, int m) {
  return CurrentDevice().multiprocessors * (PairsUp(weight, m) ? 2 : 1);
}

// Two CTAs of which one has more than half of the split, the other less, fit together; two of the
// former do not.
constexpr int kMoreOrLess = 256;

// Of a CTA of up to 8 tokens: half a multiprocessor's, or where x lies there, too, and the weight
// is large, all of it.
int MostShared(const WeightTiles& weight, int m, bool staged) {
  if (PairsUp(weight, m)) return WholeSplit() / 2 - kReservedPerCta;
  const int ctas = staged && IsLone(weight) ? 1 : 2;
  return std::min(CurrentDevice().shared_memory_per_block,
                  SharedOfMultiprocessor(m) / ctas - kReservedPerCta - kMoreOrLess);
}

// Of x in shared memory. Where a warp has but a unit or two, reading x where it lies is faster: all
// of it would have to be there before the first product.
constexpr int kMostStagedBytes = 72 * 1024;
constexpr int kStagedRounds = 3;
// A slice of BF16 has four stages, which would wait for their parts of x one after the other.
int StagedRounds(const WeightTiles& weight, int m) {
  return m == 1 && weight.format == TileFormat::kBf16 ? 2 : kStagedRounds;
}
// Where it is normed there, that alone is worth more.
int MostNormedBytes(int m) { return (m == 1 ? 33 : 18) * 1024; }

int StagedBytes(int k, int m) {
  return m * decode::StagedStride(k) * static_cast<int>(sizeof(uint16_t));
}

// Slices of x that lie in shared memory together: of a CTA that shares its multiprocessor, chunks
// of about the same length.
constexpr int kMostChunkBytes = 36 * 1024;
int StagedSlices(const WeightTiles& weight, int m) {
  const int slices = weight.slices();
  if (!PairsUp(weight, m)) return slices;
  return CeilDiv(slices, CeilDiv(StagedBytes(weight.k, m), kMostChunkBytes));
}

// Up to 8 tokens: a unit is one row tile's slice; many rounds between reductions.
void PlanSmall(const WeightTiles& weight, int m, int tiles, int max_partial_bytes,
               DecodePlan* plan) {
  const int slices = weight.slices();
  plan->slot_shift = Log2Ceil(m);
  const int unit = kTileRows * 4 << plan->slot_shift;
  const int cached = plan->stages == 1 ? kCachedX : kCachedXBesideTwoStages;
  const bool staged = plan->x_bytes > 0;
  const int x_slices = staged
                           ? StagedSlices(weight, m)
                           : std::max(kWarps, cached / (kSliceColumns * 2 * m) / kWarps * kWarps);
  if (x_slices >= slices || (tiles == 1 && !staged)) {
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
  return ring + plan.x_bytes + plan.run_bytes + plan.scale_bytes + partials;
}

// `stages`: of up to 8 tokens. May need more shared memory than there is.
DecodePlan PlanFor(const WeightTiles& weight, int m, bool staged, int stages, int blocks) {
  const int limit = CurrentDevice().shared_memory_per_block;
  DecodePlan plan;
  plan.m = m;
  plan.blocks = blocks;
  plan.token_tiles = TokenTiles(m);
  plan.stages = plan.token_tiles > 1 ? 2 : stages;
  plan.prepares_x = decode::PreparesX(plan.token_tiles);
  if (staged)
    plan.x_bytes = StagedBytes(std::min(weight.k, StagedSlices(weight, m) * kSliceColumns), m);
  plan.share = weight.row_tiles / blocks;
  plan.larger = weight.row_tiles % blocks;
  const int tiles = plan.share + (plan.larger > 0 ? 1 : 0);
  plan.scale_bytes = 2 * tiles * kTileRows * 4;
  if (plan.token_tiles == 1) {
    for (int partial = kMaxPartialBytes; partial >= 1024; partial /= 2) {
      PlanSmall(weight, m, tiles, partial, &plan);
      if (SharedBytes(weight, plan) <= MostShared(weight, m, staged)) break;
    }
  } else {
    const int rows = decode::RowTilesOfUnit(weight.format, plan.token_tiles);
    for (int group = kMaxGroupTiles; group >= rows; group -= rows) {
      PlanLarge(weight, m, tiles, rows, group, &plan);
      if (SharedBytes(weight, plan) <= limit) break;
    }
  }
  plan.shared_bytes = SharedBytes(weight, plan);
  if (plan.token_tiles == 1 && IsLone(weight) && !PairsUp(weight, m))
    plan.shared_bytes = std::max(plan.shared_bytes, limit / 2 + kReservedPerCta);
  return plan;
}

const void* KernelOf(const WeightTiles& weight, const DecodePlan& plan, decode::Input input) {
  switch (weight.format) {
    case TileFormat::kNvfp4:
      return decode::Nvfp4Kernel(plan.token_tiles, plan.stages, input);
    case TileFormat::kMxfp4:
      return decode::Mxfp4Kernel(plan.token_tiles, plan.stages, input);
    case TileFormat::kBf16:
      return decode::Bf16Kernel(plan.token_tiles, plan.stages, input);
    case TileFormat::kFp8:
      return decode::Fp8Kernel(plan.token_tiles, plan.stages, input);
    case TileFormat::kMxfp8:
      return decode::Mxfp8Kernel(plan.token_tiles, plan.stages, input);
    case TileFormat::kFp8Groups:
      return decode::Fp8GroupsKernel(plan.token_tiles, plan.stages, input);
    case TileFormat::kInt4:
      return decode::Int4Kernel(plan.token_tiles, plan.stages, input);
    case TileFormat::kInt8:
      return decode::Int8Kernel(plan.token_tiles, plan.stages, input);
  }
  return nullptr;
}

decode::Input InputOf(const DecodePlan& plan) {
  return plan.x_bytes > 0 ? decode::Input::kStaged : decode::Input::kPlain;
}

// Launches of a step should agree on the split: a multiprocessor changes it only while it is idle,
// and a launch that wants another one cannot start beside its predecessor. So those of one token
// ask for the same; of several, and of weights that have a multiprocessor to themselves, for all of
// it, as the experts' kernels do, unless L1 has to keep x.
bool LeavesRoomForX(const WeightTiles& weight, const DecodePlan& plan) {
  return plan.token_tiles == 1 && plan.x_bytes == 0 &&
         kSliceColumns * 2 * plan.m * weight.slices() > kCachedXBesideTwoStages;
}

void SetSharedMemory(const void* kernel, const WeightTiles& weight, const DecodePlan& plan) {
  int wanted = plan.shared_bytes + kReservedPerCta;
  if (plan.token_tiles == 1)
    wanted = std::max((plan.m == 1 && !IsLone(weight)) || LeavesRoomForX(weight, plan)
                          ? SharedOfMultiprocessor(plan.m)
                          : WholeSplit(),
                      wanted);
  AskForSplit(kernel, wanted);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
}

// Whether x goes through shared memory though it is not normed.
bool StagesX(const WeightTiles& weight, int m) {
  if (PairsUp(weight, m)) return true;
  const int blocks = CurrentDevice().multiprocessors;
  const int units = CeilDiv(weight.row_tiles, blocks) * weight.slices();
  return MayStage(weight, m) && CeilDiv(units, kWarps) >= StagedRounds(weight, m) &&
         StagedBytes(weight.k, m) <= kMostStagedBytes &&
         PlanFor(weight, m, true, 1, blocks).shared_bytes <= MostShared(weight, m, true);
}

}  // namespace

int DecodeTokensOfLaunch(const WeightTiles& weight, int64_t tokens) {
  for (const int most : {64, 32, 16}) {
    const int m = static_cast<int>(std::min<int64_t>(tokens, most));
    if (m <= 8 ||
        PlanDecode(weight, m, false).shared_bytes <= CurrentDevice().shared_memory_per_block)
      return m;
  }
  return 8;
}

int DecodeTokens(int m) { return 8 * TokenTiles(m); }

bool DecodeTakes(const WeightTiles& weight, const uint16_t* x, int64_t x_stride, int m) {
  return !decode::PreparesX(TokenTiles(m)) && weight.k % kTileColumns == 0 &&
         reinterpret_cast<uintptr_t>(x) % 16 == 0 && x_stride % 8 == 0;
}

bool NormsInDecode(const WeightTiles& weight, const InputNorm& norm, int m) {
  return MayStage(weight, m) && weight.k <= kMaxFusedNormWidth &&
         reinterpret_cast<uintptr_t>(norm.weight) % 16 == 0 &&
         (StagedBytes(weight.k, m) <= MostNormedBytes(m) || StagesX(weight, m));
}

namespace {

DecodePlan PlanDecode(const WeightTiles& weight, int m, bool norms, int stages, int blocks) {
  const bool stages_x = StagesX(weight, m);
  const bool staged = norms || stages_x;
  if (stages > 0) return PlanFor(weight, m, staged, stages, blocks);
  // Two where x is there, or where L1, beside them, still keeps it.
  if (stages_x || kSliceColumns * 2 * m * weight.slices() <= kCachedXBesideTwoStages) {
    const DecodePlan two = PlanFor(weight, m, staged, 2, blocks);
    if (two.shared_bytes <= MostShared(weight, m, staged)) return two;
  }
  return PlanFor(weight, m, staged, 1, blocks);
}

}  // namespace

DecodePlan PlanDecode(const WeightTiles& weight, int m, bool norms, int stages) {
  int blocks = BlocksOf(weight, m);
  DecodePlan plan = PlanDecode(weight, m, norms, stages, blocks);
  // Where few multiprocessors have little memory, the row scales of a large head alone fill it.
  while (plan.token_tiles == 1 && plan.share > 0 &&
         plan.shared_bytes > CurrentDevice().shared_memory_per_block)
    plan = PlanDecode(weight, m, norms, stages, blocks *= 2);
  return plan;
}

int DecodeBlocksPerMultiprocessor(const WeightTiles& weight, const DecodePlan& plan) {
  const void* const kernel = KernelOf(weight, plan, InputOf(plan));
  SetSharedMemory(kernel, weight, plan);
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, decode::kThreads,
                                                plan.shared_bytes);
  return blocks;
}

void LaunchDecode(const DecodeArgs& args, const DecodePlan& planned, void* stream) {
  DecodePlan plan = planned;
  // What ends a block stands behind kernels that hold room on some multiprocessors; on the others
  // two of its CTAs would meet. For one token no gain was measured.
  if (args.add && plan.token_tiles == 1 && plan.m > 1)
    plan.shared_bytes = std::max(
        plan.shared_bytes, SharedOfMultiprocessor(plan.m) / 2 - kReservedPerCta + kMoreOrLess);
  const void* const kernel = KernelOf(args.weight, plan, InputOf(plan));
  SetSharedMemory(kernel, args.weight, plan);
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
  DecodePlan plan = PlanFor(weight, m, false, 1, blocks);
  if (plan.shared_bytes > CurrentDevice().shared_memory_per_block)
    plan = PlanFor(weight, 8, false, 1, blocks);
  const void* const kernel = KernelOf(weight, plan, decode::Input::kOfHeads);
  SetSharedMemory(kernel, weight, plan);
  const auto launchable =
      reinterpret_cast<void (*)(HeadDecodeArgs, DecodePlan)>(const_cast<void*>(kernel));
  const int token_blocks = CeilDiv(args.each.m, 8 * plan.token_tiles);
  LaunchPdl(launchable, dim3(blocks, args.head_count, token_blocks), dim3(decode::kThreads),
            plan.shared_bytes, static_cast<cudaStream_t>(stream), args, plan);
}

}  // namespace nibble::kernels::cuda
