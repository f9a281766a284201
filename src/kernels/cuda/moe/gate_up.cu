// FC1. An item is 16 rows of h of one group: gate tile and up tile of these rows, whose slices are
// summed by the warps of one block, so that the activation happens where the slices are added.
// Items of all groups form one list, of which every block has a contiguous share; its warps take
// the slices of the share in turns.
#include <algorithm>

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/moe/slice.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;

// A tile of gate rows, and the one of up rows or the two that they straddle.
constexpr int kMaxParts = 3;

struct Plan {
  RingShape ring;
  int32_t buffers = 2;
  int32_t parts = 2;         // 1: no gate
  int32_t slices = 0;        // of every part, as counted
  int32_t columns = 0;       // rows of a group, at most
  int32_t batch_items = 0;   // between two additions
  int32_t block_groups = 0;  // that a block's share may touch
  int32_t routed_cost = 1;   // of an item
  int32_t shared_cost = 1;
};

// A group as a block keeps it.
struct LocalGroup {
  Source parts[kMaxParts];
  const float* gate_scales;
  const float* up_scales;
  const float* gate_bias;  // or null
  const float* up_bias;
  int32_t first_row;
  int32_t rows;
  int32_t f;
  int32_t up_offset;  // of up row 0 in its first part's tile
};

struct Shared {
  std::byte* ring;      // (warps, stages)
  float* partial;       // (buffers, batch_items * parts * slices, columns)
  RowScale* scales;     // (buffers, batch_items, gate and up, 16)
  LocalGroup* groups;   // (block_groups)
  uint32_t* x_offsets;  // (block_groups, columns): first elements of rows of x
};

__host__ __device__ inline size_t Carve(std::byte* base, const Plan& plan, Shared* shared) {
  size_t used = 0;
  const auto take = [&](auto** pointer, size_t count) {
    using T = std::remove_reference_t<decltype(**pointer)>;
    *pointer = reinterpret_cast<T*>(base + used);
    used += (count * sizeof(T) + 15) / 16 * 16;
  };
  take(&shared->ring, kWarps * plan.ring.stages * plan.ring.stage_bytes);
  take(&shared->partial,
       plan.buffers * plan.batch_items * plan.parts * plan.slices * plan.columns * kColumnStride);
  take(&shared->scales, plan.buffers * plan.batch_items * 2 * kTileRows);
  take(&shared->groups, plan.block_groups);
  take(&shared->x_offsets, plan.block_groups * plan.columns);
  return used;
}

__host__ __device__ inline int RowTiles(int rows) { return (rows + kTileRows - 1) / kTileRows; }

// The items of the step, and the share of a block.
struct Items {
  int routed_tiles, shared_tiles;  // of a group
  int routed;                      // items
  int first, end;                  // of this block

  __device__ Items(const GateUpParams& p, const Plan& plan, const Counts& counts)
      : routed_tiles(RowTiles(p.f)),
        shared_tiles(RowTiles(p.shared_f)),
        routed(counts.routed_groups * routed_tiles) {
    const int64_t routed_cost = int64_t{routed} * plan.routed_cost;
    const int shared = (counts.groups - counts.routed_groups) * shared_tiles;
    const int64_t cost = routed_cost + int64_t{shared} * plan.shared_cost;
    const auto at = [&](int64_t border) {
      if (border < routed_cost)
        return static_cast<int>((border + plan.routed_cost - 1) / plan.routed_cost);
      return routed +
             static_cast<int>((border - routed_cost + plan.shared_cost - 1) / plan.shared_cost);
    };
    first = at(cost * blockIdx.x / gridDim.x);
    end = at(cost * (blockIdx.x + 1) / gridDim.x);
    routed_groups_ = counts.routed_groups;
  }

  struct Item {
    int group;
    int tile;
  };
  __device__ __forceinline__ Item At(int index) const {
    if (index < routed) return {index / routed_tiles, index % routed_tiles};
    return {routed_groups_ + (index - routed) / shared_tiles, (index - routed) % shared_tiles};
  }
  __device__ __forceinline__ int TilesOf(int group) const {
    return group < routed_groups_ ? routed_tiles : shared_tiles;
  }

 private:
  int routed_groups_;
};

// By the lanes of one warp.
__device__ void LoadGroup(const GateUpParams& p, const Plan& plan, const Group* group, int lane,
                          LocalGroup* local, uint32_t* x_offsets) {
  const int first_row = group->first_row, rows = group->rows;
  const WeightTiles& gate_up = group->expert.gate_up.tiles;
  const WeightTiles& up = group->expert.up.tiles;
  const float* bias = group->expert.gate_up.bias;
  const int f = group->id == p.experts ? p.shared_f : p.f;
  const bool apart = up.data != nullptr;
  const int first_up = plan.parts == 1 ? 0 : apart ? 0 : f;
  if (lane < plan.parts) {
    const WeightTiles& tiles = lane == 0 || !apart ? gate_up : up;
    Source source = SourceOf(tiles, lane == 0 ? 0 : first_up / kTileRows + lane - 1);
    if (lane == 2 && first_up % kTileRows == 0) source.data = nullptr;
    local->parts[lane] = source;
  }
  if (lane == 0) {
    local->gate_scales = gate_up.row_scales;
    local->up_scales = (apart ? up.row_scales : gate_up.row_scales) + first_up;
    local->gate_bias = bias;
    local->up_bias = bias == nullptr ? nullptr : bias + f;
    local->first_row = first_row;
    local->rows = rows;
    local->f = f;
    local->up_offset = first_up % kTileRows;
  }
  for (int c = lane; c < plan.columns; c += 32) {
    const int row = first_row + min(c, rows - 1);
    const int64_t at = p.by_row ? row : p.lists.row_token[row];
    x_offsets[c] = static_cast<uint32_t>(at * p.x_stride);
  }
}

// Walks the slices of the block's share that one warp takes.
struct Cursor {
  int unit;  // of the share: (item, part, slice)
  int slice;
  int part;
  int tile;
  int group;  // of the block's

  __device__ __forceinline__ void Settle(const Items& items, const Plan& plan, int first_group) {
    while (slice >= plan.slices) {
      slice -= plan.slices;
      if (++part < plan.parts) continue;
      part = 0;
      if (++tile < items.TilesOf(first_group + group)) continue;
      tile = 0;
      ++group;
    }
  }
  __device__ __forceinline__ void Step(const Items& items, const Plan& plan, int first_group) {
    unit += kWarps;
    slice += kWarps;
    Settle(items, plan, first_group);
  }
};

// Scale and bias of row `row` (0..15) of an item's gate (side 0) or up rows.
__device__ __forceinline__ RowScale LoadScale(const LocalGroup& group, int tile, int side,
                                              int row) {
  const int n = tile * kTileRows + row;
  if (n >= group.f) return {0.0f, 0.0f};
  const float* bias = side == 0 ? group.gate_bias : group.up_bias;
  return {(side == 0 ? group.gate_scales : group.up_scales)[n], bias == nullptr ? 0.0f : bias[n]};
}

template <int kTiles, Formats kFormats>
__global__ void __launch_bounds__(kThreads, kTiles == 1 && kFormats != Formats::kAny ? 2 : 1)
    GateUpKernel(const __grid_constant__ GateUpParams p, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) std::byte memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Shared shared;
  Carve(memory, plan, &shared);
  ptx::WaitForPredecessor();
  // After the wait: then the successor, which starts when all blocks are here, may read the lists
  // before its own.
  ptx::LaunchSuccessor();
  const Items items(p, plan, *p.lists.counts);
  if (items.first >= items.end) return;
  const int first_group = items.At(items.first).group;
  const int groups = items.At(items.end - 1).group + 1 - first_group;
  for (int g = warp; g < groups; g += kWarps) {
    LoadGroup(p, plan, p.lists.groups + first_group + g, lane, shared.groups + g,
              shared.x_offsets + g * plan.columns);
  }
  __syncthreads();

  const int units_of_item = plan.parts * plan.slices;
  const int units = (items.end - items.first) * units_of_item;
  Cursor ahead = {warp, warp, 0, items.At(items.first).tile, 0};
  ahead.Settle(items, plan, first_group);
  Cursor now = ahead;
  WarpRing ring(shared.ring + warp * plan.ring.stages * plan.ring.stage_bytes, plan.ring);
  const auto fill = [&] {
    if (ahead.unit >= units) return ring.Skip();
    const Source& source = shared.groups[ahead.group].parts[ahead.part];
    ring.Fill<kFormats>(SliceOf(source, ahead.tile, ahead.slice), source, lane);
    ahead.Step(items, plan, first_group);
  };
  for (int s = 0; s < plan.ring.stages; ++s) fill();

  const int sum_floats = plan.columns * kColumnStride;
  const int items_here = items.end - items.first;
  const int batches = (items_here + plan.batch_items - 1) / plan.batch_items;
  for (int b = 0; b < batches; ++b) {
    const int first_item = items_here * b / batches, end_item = items_here * (b + 1) / batches;
    const int buffer = plan.buffers == 2 ? b % 2 : 0;
    float* const partial = shared.partial + buffer * plan.batch_items * units_of_item * sum_floats;
    RowScale* const scales = shared.scales + buffer * plan.batch_items * 2 * kTileRows;
    for (int i = threadIdx.x; i < (end_item - first_item) * 2 * kTileRows; i += kThreads) {
      const auto [group, tile] = items.At(items.first + first_item + i / (2 * kTileRows));
      scales[i] =
          LoadScale(shared.groups[group - first_group], tile, i / kTileRows % 2, i % kTileRows);
    }
    while (now.unit < end_item * units_of_item) {
      const LocalGroup& group = shared.groups[now.group];
      const Source& source = group.parts[now.part];
      const uint16_t* const x = now.part == 0 ? p.x : p.x_up;
      LaneRows<kTiles> rows;
#pragma unroll
      for (int c = 0; c < kTiles; ++c) {
        const int column = min(c * 8 + lane / 4, plan.columns - 1);
        rows.row[c] = x + shared.x_offsets[now.group * plan.columns + column] + lane % 4 * 16;
      }
      float sum[kTiles][4];
      const std::byte* stage = ring.Wait();
      SumSlice<kFormats>(stage, SliceOf(source, now.tile, now.slice), source, rows, lane, sum);
      ring.Release();
      fill();
      StoreSums(partial + (now.unit - first_item * units_of_item) * sum_floats, group.rows, lane,
                sum);
      now.Step(items, plan, first_group);
    }
    __syncthreads();
    const int outputs = (end_item - first_item) * plan.columns * kTileRows;
    for (int i = threadIdx.x; i < outputs; i += kThreads) {
      const int row = i % kTileRows, column = i / kTileRows % plan.columns;
      const int item = i / kTileRows / plan.columns;
      const auto [index, tile] = items.At(items.first + first_item + item);
      const LocalGroup& group = shared.groups[index - first_group];
      if (column >= group.rows) continue;
      const float* const of_item =
          partial + item * units_of_item * sum_floats + column * kColumnStride;
      const RowScale* const scale = scales + item * 2 * kTileRows;
      const float gate =
          scale[row].Apply(AddSlices(of_item + row, group.parts[0].slices(), sum_floats));
      float up = 0.0f;
      if (plan.parts > 1) {
        const int up_row = group.up_offset + row, part = 1 + up_row / kTileRows;
        if (tile * kTileRows + row < group.f) {
          up = scale[kTileRows + row].Apply(
              AddSlices(of_item + part * plan.slices * sum_floats + up_row % kTileRows,
                        group.parts[part].slices(), sum_floats));
        }
      }
      const int n = tile * kTileRows + row;
      uint16_t* const h = p.h + (group.first_row + column) * p.h_stride + n;
      float value = 0.0f;
      if (n < group.f) value = Activate(p.activation, ptx::RoundBf16(gate), ptx::RoundBf16(up));
      *h = static_cast<uint16_t>(ptx::PackBf16(value, 0.0f));
      // What the next linear reads beside the last tile.
      if (tile + 1 == RowTiles(group.f)) {
        const int end = (group.f + kTileColumns - 1) / kTileColumns * kTileColumns;
        for (int m = n + kTileRows; m < end; m += kTileRows) h[m - n] = 0;
      }
    }
    if (plan.buffers == 1) __syncthreads();
  }
}

// False where shared memory is too small for groups of so many rows.
bool MakePlan(const GateUpParams& p, int blocks, Plan* plan) {
  WeightSet all = p.routed;
  all.Add(p.shared);
  const bool gated = p.activation.gated();
  // Stacked up rows begin anywhere; where they are a weight of their own, at a tile.
  const bool straddle = gated && (p.f % kTileRows != 0 || p.shared_f % kTileRows != 0);
  plan->parts = !gated ? 1 : straddle ? 3 : 2;
  plan->slices = all.slices;
  plan->columns = static_cast<int32_t>(std::min<int64_t>(p.group_rows, p.t));
  plan->routed_cost = std::max(1, p.routed.tile_bytes / 1024);
  plan->shared_cost = std::max(1, p.shared.tile_bytes / 1024);
  const int64_t routed_tiles = RowTiles(p.f), shared_tiles = RowTiles(p.shared_f);
  const int64_t largest = std::max(routed_tiles, shared_tiles);
  const int64_t smallest = p.shared_f > 0 ? std::min(routed_tiles, shared_tiles) : routed_tiles;
  const int64_t ratio = std::max(plan->routed_cost, plan->shared_cost) /
                            std::min(plan->routed_cost, plan->shared_cost) +
                        1;
  const int64_t block_items = p.max_groups * largest * ratio / blocks + 2;
  plan->block_groups = static_cast<int32_t>(std::min(p.max_groups, block_items / smallest + 2));
  plan->ring.stage_bytes = all.slice_bytes;

  // Two blocks, of this and the next kernel, share an SM where stages are small.
  const bool lean = (all.all_nvfp4 || all.all_mxfp4) && p.group_rows == 8;
  const auto most = static_cast<size_t>(CurrentDevice().shared_memory_per_block);
  const size_t budget = lean ? std::min<size_t>(most, 112 * 1024) : most;
  Shared ignored;
  for (const size_t limit : {budget, most}) {
    for (plan->buffers = 2; plan->buffers >= 1; --plan->buffers) {
      for (plan->ring.stages = 2; plan->ring.stages >= 1; --plan->ring.stages) {
        for (plan->batch_items = 8; plan->batch_items >= 1; --plan->batch_items)
          if (Carve(nullptr, *plan, &ignored) <= limit) return true;
      }
    }
  }
  return false;
}

template <int kTiles>
auto KernelOf(Formats formats) {
  switch (formats) {
    case Formats::kNvfp4:
      return GateUpKernel<kTiles, Formats::kNvfp4>;
    case Formats::kMxfp4:
      return GateUpKernel<kTiles, Formats::kMxfp4>;
    default:
      return GateUpKernel<kTiles, Formats::kAny>;
  }
}

}  // namespace

void WeightSet::Add(const WeightTiles& tiles) {
  if (slices == 0) like = tiles;
  uniform = uniform && tiles.format == like.format && tiles.n == like.n && tiles.k == like.k &&
            tiles.k_tiles == like.k_tiles;
  all_nvfp4 = all_nvfp4 && tiles.format == TileFormat::kNvfp4;
  all_mxfp4 = all_mxfp4 && tiles.format == TileFormat::kMxfp4;
  slices = std::max(slices, tiles.slices());
  slice_bytes = std::max(slice_bytes, tiles.slice_stride());
  tile_bytes = std::max(tile_bytes, static_cast<int32_t>(tiles.row_tile_bytes));
}

void WeightSet::Add(const WeightSet& other) {
  if (other.slices == 0) return;
  all_nvfp4 = all_nvfp4 && other.all_nvfp4;
  all_mxfp4 = all_mxfp4 && other.all_mxfp4;
  slices = std::max(slices, other.slices);
  slice_bytes = std::max(slice_bytes, other.slice_bytes);
  tile_bytes = std::max(tile_bytes, other.tile_bytes);
}

Formats FormatsOf(const WeightSet& set) {
  return set.all_nvfp4 ? Formats::kNvfp4 : set.all_mxfp4 ? Formats::kMxfp4 : Formats::kAny;
}

bool GateUpFits(const GateUpParams& params) {
  Plan plan;
  return MakePlan(params, CurrentDevice().multiprocessors, &plan);
}

void GateUp(const OpContext& context, const GateUpParams& params) {
  const int blocks = CurrentDevice().multiprocessors;
  Plan plan;
  MakePlan(params, blocks, &plan);
  WeightSet all = params.routed;
  all.Add(params.shared);
  const auto kernel = params.group_rows <= 8    ? KernelOf<1>(FormatsOf(all))
                      : params.group_rows <= 16 ? KernelOf<2>(FormatsOf(all))
                                                : KernelOf<4>(FormatsOf(all));
  Shared ignored;
  LaunchPdl(kernel, blocks, kThreads, Carve(nullptr, plan, &ignored), StreamOf(context), params,
            plan);
}

}  // namespace nibble::kernels::cuda::moe
