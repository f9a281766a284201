// An item is 16 outputs of one group. Its slices, before the activation those of a gate tile and of
// the up tile of the same rows, are summed by the warps of one block, so that the activation
// happens where the slices are added. Items of all groups form one list, of which every block has a
// contiguous share; its warps take the slices of the share in turns.
#include <algorithm>

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/slice.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kMostWarps = 16;
constexpr int kMostThreads = 32 * kMostWarps;

struct Plan {
  RingShape ring;
  int32_t warps = kMostWarps;  // fewer where shared memory has no room for the rings of so many
  int32_t buffers = 2;
  int32_t parts = 2;         // 1: no gate
  int32_t slices = 0;        // of every part, as counted
  int32_t columns = 0;       // rows of a group, at most
  int32_t batch_items = 0;   // between two additions, where groups have that many rows
  int32_t block_groups = 0;  // that a block's share may touch
  int32_t step_items = 0;    // what `warps` units are, in items and units
  int32_t step_units = 0;
  int32_t routed_tiles = 0;  // items of a group
  int32_t shared_tiles = 0;
  int32_t partial_floats = 0;  // of a buffer
  // Shared memory, in bytes from its begin; the ring comes first.
  uint32_t partial_at = 0;  // (buffers, batch_items * parts * slices, columns)
  uint32_t scales_at = 0;   // (buffers, kMaxBatchItems, gate and up, 16)
  uint32_t items_at = 0;    // (buffers, kMaxBatchItems)
  uint32_t groups_at = 0;   // (block_groups)
  uint32_t x_at = 0;        // (block_groups, columns)
  uint32_t shared_bytes = 0;
};

// So that a thread holds at most one scale of a batch.
constexpr int MaxBatchItems(int warps) { return 32 * warps / (2 * kTileRows); }
constexpr int kMaxBatchItems = MaxBatchItems(kMostWarps);

// 16 outputs of a group.
struct Item {
  int group;  // of the block's
  int tile;
};

__host__ __device__ inline int RowTiles(int rows) { return (rows + kTileRows - 1) / kTileRows; }

// The block's share, whose items follow one another.
struct Items {
  Share share;
  int routed_tiles;
  int shared_tiles;

  __device__ __forceinline__ int TilesOf(int group) const {
    return group < share.routed_groups ? routed_tiles : shared_tiles;
  }
  __device__ __forceinline__ void Settle(Item* item) const {
    for (int tiles = TilesOf(item->group); item->tile >= tiles; tiles = TilesOf(item->group)) {
      item->tile -= tiles;
      ++item->group;
    }
  }
};

// First elements of the rows of x that the groups multiply by.
__device__ void LoadRows(const PhaseParams& p, const Plan& plan, const Group* groups, int count,
                         uint32_t* x_offsets) {
  for (int i = threadIdx.x; i < count * plan.columns; i += 32 * plan.warps) {
    const Group& group = groups[i / plan.columns];
    const int row = group.first_row + min(i % plan.columns, group.rows - 1);
    const int at = p.by_row ? row : p.lists.row_token[row];
    x_offsets[i] = static_cast<uint32_t>(at) * static_cast<uint32_t>(p.x_stride);
  }
}

// Walks the slices of the block's share that one warp takes.
struct Cursor {
  int unit;     // of the share: (item, part, slice)
  int of_item;  // the same, of its item
  Item item;

  __device__ __forceinline__ void Settle(const Items& items, int units_of_item) {
    if (of_item >= units_of_item) {
      of_item -= units_of_item;
      ++item.tile;
    }
    items.Settle(&item);
  }
  __device__ __forceinline__ void Step(const Items& items, const Plan& plan, int units_of_item) {
    unit += plan.warps;
    of_item += plan.step_units;
    item.tile += plan.step_items;
    Settle(items, units_of_item);
  }
  __device__ __forceinline__ int part(const Plan& plan) const {
    return (of_item >= plan.slices) + (of_item >= 2 * plan.slices);
  }
};

template <Phase kPhase>
__device__ __forceinline__ const Source& SourceOf(const Group& group, int part) {
  if constexpr (kPhase == Phase::kDown) return group.expert.down;
  return part == 0 ? group.expert.gate : group.expert.up;
}

// Whether rows of up of an item lie in the row tile after its first, too.
__device__ __forceinline__ bool Straddles(const Group& group, int tile) {
  return group.expert.up_offset + min(kTileRows, group.f - tile * kTileRows) > kTileRows;
}

// The third part is the row tile after the second, where there is one.
template <Formats kFormats>
__device__ __forceinline__ Slice SliceOf(const Group& group, const Source& source,
                                         const Cursor& cursor, int part, const Plan& plan) {
  if (part == 2 && !Straddles(group, cursor.item.tile)) return {nullptr, 0, 0};
  return SliceOf<kFormats>(source, cursor.item.tile + (part == 2),
                           cursor.of_item - part * plan.slices);
}

// Scale and bias of row `row` (0..15) of an item's gate (side 0), up or down rows.
template <Phase kPhase>
__device__ __forceinline__ RowScale LoadScale(const PhaseParams& p, const Group& group, int tile,
                                              int side, int row) {
  const Expert& expert = group.expert;
  const int n = tile * kTileRows + row;
  if (n >= (kPhase == Phase::kDown ? p.outputs : group.f)) return {0.0f, 0.0f};
  const float* scale = expert.down_scales;
  const float* bias = expert.down_bias;
  if constexpr (kPhase == Phase::kGateUp) {
    scale = side == 0 ? expert.gate_scales : expert.up_scales;
    bias = side == 0 ? expert.gate_bias : expert.up_bias;
  }
  return {scale[n], bias == nullptr ? 0.0f : bias[n]};
}

// An output of one column: where the item's sums of it begin, and how they lie.
struct Output {
  const float* sums;
  int sum_floats;
  const RowScale* scales;
  int tile;
  int row;
  int column;
};

__device__ __forceinline__ void FinishDown(const PhaseParams& p, const Group& group,
                                           const Output& out) {
  const int n = out.tile * kTileRows + out.row;
  if (n >= p.outputs) return;
  p.y[int64_t{group.first_row + out.column} * p.outputs + n] = out.scales[out.row].Apply(
      AddSlices(out.sums + out.row, group.expert.down.slices(), out.sum_floats));
}

__device__ __forceinline__ void FinishGateUp(const PhaseParams& p, const Plan& plan,
                                             const Group& group, const Output& out) {
  const int n = out.tile * kTileRows + out.row;
  float value = 0.0f;
  if (n < group.f) {
    const float gate = out.scales[out.row].Apply(
        AddSlices(out.sums + out.row, group.expert.gate.slices(), out.sum_floats));
    float up = 0.0f;
    if (plan.parts > 1) {
      const int up_row = group.expert.up_offset + out.row, part = 1 + up_row / kTileRows;
      up = out.scales[kTileRows + out.row].Apply(
          AddSlices(out.sums + part * plan.slices * out.sum_floats + up_row % kTileRows,
                    group.expert.up.slices(), out.sum_floats));
    }
    value = Activate(p.activation, ptx::RoundBf16(gate), ptx::RoundBf16(up));
  }
  uint16_t* const h = p.h + (group.first_row + out.column) * p.h_stride + n;
  *h = static_cast<uint16_t>(ptx::PackBf16(value, 0.0f));
  // What the next linear reads beside the last tile.
  if ((out.tile + 1) * kTileRows >= group.f) {
    const int end = (group.f + kTileColumns - 1) / kTileColumns * kTileColumns;
    for (int m = n + kTileRows; m < end; m += kTileRows) h[m - n] = 0;
  }
}

template <Phase kPhase, int kTiles, Formats kFormats>
__global__ void __launch_bounds__(kMostThreads)
    PhaseKernel(const __grid_constant__ PhaseParams p, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) std::byte memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto* const groups = reinterpret_cast<Group*>(memory + plan.groups_at);
  auto* const x_offsets = reinterpret_cast<uint32_t*>(memory + plan.x_at);
  ptx::WaitForPredecessor();
  // After the wait: then the successor, which starts when all blocks are here, may read the lists
  // before its own.
  ptx::LaunchSuccessor();
  const Items items = {
      (kPhase == Phase::kDown ? p.lists.down_shares : p.lists.gate_up_shares)[blockIdx.x],
      plan.routed_tiles, plan.shared_tiles};
  const Share& share = items.share;
  if (share.items == 0) return;
  constexpr int kVectors = sizeof(Group) / 16;
  for (int g = warp; g < share.groups; g += plan.warps) {
    if (lane < kVectors) {
      reinterpret_cast<uint4*>(groups + g)[lane] =
          reinterpret_cast<const uint4*>(p.lists.groups + share.group + g)[lane];
    }
  }
  __syncthreads();

  const int units_of_item = plan.parts * plan.slices;
  const int items_here = share.items;
  const int units = items_here * units_of_item;
  Cursor ahead = {warp, warp, {0, share.tile}};
  while (ahead.of_item >= units_of_item) ahead.Settle(items, units_of_item);
  Cursor now = ahead;
  WarpRing<kFormats == Formats::kAny ? 0 : kLeanStages> ring(
      memory + warp * plan.ring.stages * plan.ring.stage_bytes, plan.ring);
  const bool several_stages = kFormats != Formats::kAny || plan.ring.stages > 1;
  const auto fill = [&] {
    if (ahead.unit >= units) return ring.Skip();
    const int part = ahead.part(plan);
    const Group& group = groups[ahead.item.group];
    const Source& source = SourceOf<kPhase>(group, part);
    ring.template Fill<kFormats>(SliceOf<kFormats>(group, source, ahead, part, plan), source, lane);
    ahead.Step(items, plan, units_of_item);
  };
  fill();
  LoadRows(p, plan, groups, share.groups, x_offsets);
  // Where all groups here have few rows, so have the sums, and more items fit a batch.
  int columns = 1;
  for (int g = 0; g < share.groups; ++g) columns = max(columns, groups[g].rows);
  const int sum_floats = columns * kColumnStride;
  const int column_shift = 32 - __clz(columns - 1);
  const int batch_items =
      min(MaxBatchItems(plan.warps), plan.partial_floats / (units_of_item * sum_floats));
  const int batches = (items_here + batch_items - 1) / batch_items;
  __syncthreads();

  int first_item = 0;
  for (int b = 0; b < batches; ++b) {
    const int end_item = first_item + (items_here - first_item) / (batches - b);
    const int buffer = plan.buffers == 2 ? b % 2 : 0;
    auto* const partial =
        reinterpret_cast<float*>(memory + plan.partial_at) + buffer * plan.partial_floats;
    auto* const scales = reinterpret_cast<RowScale*>(memory + plan.scales_at) +
                         buffer * kMaxBatchItems * 2 * kTileRows;
    auto* const batch = reinterpret_cast<Item*>(memory + plan.items_at) + buffer * kMaxBatchItems;
    // On its way while slices are summed.
    Item scaled = {};
    RowScale scale = {};
    const int of_batch = threadIdx.x / (2 * kTileRows);
    if (of_batch < end_item - first_item) {
      scaled = {0, share.tile + first_item + of_batch};
      items.Settle(&scaled);
      scale = LoadScale<kPhase>(p, groups[scaled.group], scaled.tile, threadIdx.x / kTileRows % 2,
                                threadIdx.x % kTileRows);
    }
    const int end_unit = end_item * units_of_item;
    float* to = partial + (now.unit - first_item * units_of_item) * sum_floats;
    for (; now.unit < end_unit; to += plan.warps * sum_floats) {
      const Group& group = groups[now.item.group];
      const int part = now.part(plan);
      const uint16_t* const x = part == 0 ? p.x : p.x_up;
      LaneRows<kTiles> rows;
#pragma unroll
      for (int c = 0; c < kTiles; ++c) {
        const int column = min(c * 8 + lane / 4, columns - 1);
        rows.row[c] = x + x_offsets[now.item.group * plan.columns + column] + lane % 4 * 16;
      }
      float sum[kTiles][4];
      const Source& source = SourceOf<kPhase>(group, part);
      // One stage ahead, not more: the first slices are summed while others are on their way.
      if (several_stages) fill();
      SumSlice<kFormats, kTiles, true>(ring, SliceOf<kFormats>(group, source, now, part, plan),
                                       source, rows, lane, sum);
      if (!several_stages) fill();
      StoreSums(to, group.rows, lane, sum);
      now.Step(items, plan, units_of_item);
    }
    if (of_batch < end_item - first_item) {
      scales[threadIdx.x] = scale;
      if (threadIdx.x % (2 * kTileRows) == 0) batch[of_batch] = scaled;
    }
    __syncthreads();
    const int outputs = (end_item - first_item) * kTileRows << column_shift;
    for (int i = threadIdx.x; i < outputs; i += 32 * plan.warps) {
      const int row = i % kTileRows, rest = i / kTileRows;
      const int column = rest & ((1 << column_shift) - 1), item = rest >> column_shift;
      const auto [index, tile] = batch[item];
      const Group& group = groups[index];
      if (column >= group.rows) continue;
      const Output output = {
          .sums = partial + item * units_of_item * sum_floats + column * kColumnStride,
          .sum_floats = sum_floats,
          .scales = scales + item * 2 * kTileRows,
          .tile = tile,
          .row = row,
          .column = column};
      if constexpr (kPhase == Phase::kDown) {
        FinishDown(p, group, output);
      } else {
        FinishGateUp(p, plan, group, output);
      }
    }
    if (plan.buffers == 1) __syncthreads();
    first_item = end_item;
  }
}

// The shared memory that the plan needs.
void PlaceInShared(Plan* plan) {
  uint32_t used = 0;
  const auto take = [&](int64_t bytes) {
    const uint32_t at = used;
    used += static_cast<uint32_t>((bytes + 15) / 16 * 16);
    return at;
  };
  plan->partial_floats =
      plan->batch_items * plan->parts * plan->slices * plan->columns * kColumnStride;
  take(plan->warps * plan->ring.stages * plan->ring.stage_bytes);
  plan->partial_at = take(int64_t{4} * plan->buffers * plan->partial_floats);
  plan->scales_at =
      take(plan->buffers * kMaxBatchItems * 2 * kTileRows * int64_t{sizeof(RowScale)});
  plan->items_at = take(plan->buffers * kMaxBatchItems * int64_t{sizeof(Item)});
  plan->groups_at = take(plan->block_groups * int64_t{sizeof(Group)});
  plan->x_at = take(int64_t{4} * plan->block_groups * plan->columns);
  plan->shared_bytes = used;
}

// False where shared memory is too small for groups of so many rows.
bool MakePlan(const PhaseParams& p, Plan* plan) {
  WeightSet all = p.routed;
  all.Add(p.shared);
  const bool one = p.phase == Phase::kDown || !p.activation.gated();
  plan->parts = one ? 1 : p.straddles ? 3 : 2;
  plan->slices = all.slices;
  plan->columns = static_cast<int32_t>(std::min<int64_t>(p.group_rows, p.t));
  const Split split = SplitOf(p);
  plan->routed_tiles = split.routed_tiles;
  plan->shared_tiles = split.shared_tiles;
  const int units_of_item = std::max(1, plan->parts * plan->slices);
  const int64_t largest = std::max(split.routed_tiles, split.shared_tiles);
  const int64_t smallest =
      p.shared_outputs > 0 ? std::min(split.routed_tiles, split.shared_tiles) : split.routed_tiles;
  const int64_t ratio = std::max(split.routed_cost, split.shared_cost) /
                            std::min(split.routed_cost, split.shared_cost) +
                        1;
  const int64_t block_items = p.max_groups * largest * ratio / split.blocks + 2;
  plan->block_groups = static_cast<int32_t>(std::min(p.max_groups, block_items / smallest + 2));
  plan->ring.stage_bytes = all.slice_bytes;

  // What is left serves as L1, for x.
  const bool lean = FormatsOf(all) != Formats::kAny;
  const auto most = static_cast<size_t>(CurrentDevice().shared_memory_per_block);
  const size_t budget = lean ? std::min<size_t>(most, 160 * 1024) : most;
  const int most_stages = lean ? kLeanStages : 2, fewest_stages = lean ? kLeanStages : 1;
  const auto fits = [&](size_t limit) {
    plan->step_items = plan->warps / units_of_item;
    plan->step_units = plan->warps % units_of_item;
    for (plan->buffers = 2; plan->buffers >= 1; --plan->buffers) {
      for (plan->ring.stages = most_stages; plan->ring.stages >= fewest_stages;
           --plan->ring.stages) {
        for (plan->batch_items = MaxBatchItems(plan->warps); plan->batch_items >= 1;
             --plan->batch_items) {
          PlaceInShared(plan);
          if (plan->shared_bytes <= limit) return true;
        }
      }
    }
    return false;
  };
  if (fits(budget) || fits(most)) return true;
  // Groups of more rows would be cut instead.
  if (p.group_rows > 8) return false;
  for (plan->warps = kMostWarps / 2; plan->warps >= 2; plan->warps /= 2)
    if (fits(most)) return true;
  return false;
}

template <Phase kPhase, int kTiles>
auto KernelOf(Formats formats) {
  switch (formats) {
    case Formats::kNvfp4:
      return PhaseKernel<kPhase, kTiles, Formats::kNvfp4>;
    case Formats::kMxfp4:
      return PhaseKernel<kPhase, kTiles, Formats::kMxfp4>;
    default:
      return PhaseKernel<kPhase, kTiles, Formats::kAny>;
  }
}

template <Phase kPhase>
auto KernelOf(const PhaseParams& p, Formats formats) {
  if (p.group_rows <= 8) return KernelOf<kPhase, 1>(formats);
  if (p.group_rows <= 16) return KernelOf<kPhase, 2>(formats);
  return KernelOf<kPhase, 4>(formats);
}

}  // namespace

void WeightSet::Add(const WeightTiles& tiles) {
  if (slices == 0) like = tiles;
  uniform = uniform && tiles.format == like.format && tiles.n == like.n && tiles.k == like.k &&
            tiles.k_tiles == like.k_tiles && tiles.group_columns == like.group_columns;
  scales_follow = scales_follow && reinterpret_cast<const std::byte*>(tiles.row_scales) ==
                                       tiles.data + int64_t{tiles.row_tiles} * tiles.row_tile_bytes;
  all_nvfp4 = all_nvfp4 && tiles.format == TileFormat::kNvfp4;
  all_mxfp4 = all_mxfp4 && tiles.format == TileFormat::kMxfp4;
  slices = std::max(slices, tiles.slices());
  slice_bytes = std::max(slice_bytes, tiles.slice_stride());
  tile_bytes = std::max(tile_bytes, static_cast<int32_t>(tiles.row_tile_bytes));
}

void WeightSet::Add(const WeightSet& other) {
  if (other.slices == 0) return;
  scales_follow = scales_follow && other.scales_follow;
  all_nvfp4 = all_nvfp4 && other.all_nvfp4;
  all_mxfp4 = all_mxfp4 && other.all_mxfp4;
  slices = std::max(slices, other.slices);
  slice_bytes = std::max(slice_bytes, other.slice_bytes);
  tile_bytes = std::max(tile_bytes, other.tile_bytes);
}

Formats FormatsOf(const WeightSet& set) {
  return set.all_nvfp4 ? Formats::kNvfp4 : set.all_mxfp4 ? Formats::kMxfp4 : Formats::kAny;
}

Split SplitOf(const PhaseParams& p) {
  Split split = {.blocks = CurrentDevice().multiprocessors,
                 .routed_tiles = RowTiles(p.outputs),
                 .shared_tiles = std::max(1, RowTiles(p.shared_outputs))};
  const int lighter = std::min(p.routed.tile_bytes, p.shared.tile_bytes);
  if (lighter > 0 && p.routed.tile_bytes != p.shared.tile_bytes) {
    split.routed_cost = 4 * p.routed.tile_bytes / lighter;  // in quarters of the lighter one
    split.shared_cost = 4 * p.shared.tile_bytes / lighter;
  }
  return split;
}

bool PhaseFits(const PhaseParams& params) {
  Plan plan;
  return MakePlan(params, &plan);
}

void RunPhase(const OpContext& context, const PhaseParams& params) {
  Plan plan;
  MakePlan(params, &plan);
  WeightSet all = params.routed;
  all.Add(params.shared);
  const auto kernel = params.phase == Phase::kDown
                          ? KernelOf<Phase::kDown>(params, FormatsOf(all))
                          : KernelOf<Phase::kGateUp>(params, FormatsOf(all));
  LaunchPdl(kernel, CurrentDevice().multiprocessors, 32 * plan.warps, plan.shared_bytes,
            StreamOf(context), params, plan);
}

}  // namespace nibble::kernels::cuda::moe
