// An item is 16 outputs of one group: a gate tile and the up tile of the same rows. Items of all
// groups form one list, of which every block has a contiguous share; its warps take the slices of
// the share in turns, and the activation happens where slices are added.
#include <algorithm>

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/few_choice.cuh"
#include "kernels/cuda/moe/slice.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/shared_memory_split.h"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kWarps = kFewThreads / 32;
constexpr int kStages = 3;
// So that a thread holds one scale of a batch.
constexpr int kBatchItems = kFewThreads / (2 * kTileRows);

struct Plan {
  RingShape ring;
  int32_t parts = 2;  // 1: no gate
  int32_t slices = 0;
  int32_t k_tiles = 0;
  int32_t tile_bytes = 0;
  int32_t routed_tiles = 0;  // items of a group
  int32_t shared_tiles = 0;
  int32_t routed_up = 0;  // bytes from a gate tile to its up tile
  int32_t shared_up = 0;
  int32_t partial_floats = 0;
  int32_t x_stride = 0;
  // Shared memory, in bytes from its begin; the ring comes first.
  uint32_t partial_at = 0;  // (units, columns), of one batch or of two
  uint32_t scales_at = 0;   // (2, kBatchItems, gate and up, 16)
  uint32_t x_at = 0;        // (T) rows, x_stride apart
  uint32_t items_at = 0;
  uint32_t choice_at = 0;
  uint32_t shared_bytes = 0;
};

struct Item {
  const std::byte* data;  // its gate tile
  int32_t up;             // bytes from there to the up tile
  int32_t group;
  int32_t tile;
  int32_t rows;
  uint32_t tokens;
};

// Walks the slices of the block's share that one warp takes.
struct Cursor {
  int unit;  // of the share: (item, part, slice)
  int item;
  int of_item;  // unit of the item

  __device__ __forceinline__ void Settle(int units_of_item) {
    while (of_item >= units_of_item) of_item -= units_of_item, ++item;
  }
  __device__ __forceinline__ void Step(int units_of_item) {
    unit += kWarps, of_item += kWarps;
    Settle(units_of_item);
  }
};

template <Formats kFormats>
__device__ __forceinline__ Slice SliceOf(const Item& item, const Cursor& cursor, const Plan& plan) {
  constexpr TileFormat kFormat = kOnlyFormat<kFormats>;
  constexpr int kStride = kSliceTiles * CodeBytes(kFormat) + ScaleBytes(kFormat, 0);
  const bool up = cursor.of_item >= plan.slices;
  const int slice = up ? cursor.of_item - plan.slices : cursor.of_item;
  return {item.data + (up ? item.up : 0) + slice * kStride, slice * kSliceTiles,
          min(plan.k_tiles - slice * kSliceTiles, kSliceTiles)};
}

__device__ __forceinline__ RowScale LoadScale(const FewParams& p, const FewGroup& group, int tile,
                                              int side, int row) {
  const Expert& expert = group.expert == p.routing.experts ? p.shared : p.experts[group.expert];
  const int n = tile * kTileRows + row;
  const float* const scale = side == 0 ? expert.gate_scales : expert.up_scales;
  const float* const bias = side == 0 ? expert.gate_bias : expert.up_bias;
  return {scale[n], bias == nullptr ? 0.0f : bias[n]};
}

// x of all tokens, so that lanes of neighbouring rows read from different banks. Commits.
__device__ __forceinline__ void CopyX(const FewParams& p, const Plan& plan, uint16_t* to) {
  const int vectors = p.d / 8;
#pragma unroll 1
  for (int token = 0; token < p.t; ++token) {
#pragma unroll 1
    for (int i = threadIdx.x; i < vectors; i += kFewThreads)
      ptx::CopyAsync16(to + token * plan.x_stride + i * 8, p.x + token * p.d + i * 8);
  }
  ptx::CommitCopies();
}

// The block's items, and the largest of their rows. Waits for x.
__device__ __forceinline__ int ListItems(const FewParams& p, const Plan& plan,
                                         const FewGroup* groups, int routed_groups, int first,
                                         int count, Item* items) {
  const int routed = routed_groups * plan.routed_tiles;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kFewThreads) {
    const int at = first + i;
    const bool is_shared = at >= routed;
    const int group = is_shared ? routed_groups : at / plan.routed_tiles;
    const int tile = at - group * plan.routed_tiles;
    const FewGroup& of = groups[group];
    items[i] = {of.data + int64_t{tile} * plan.tile_bytes,
                is_shared ? plan.shared_up : plan.routed_up,
                group,
                tile,
                of.rows,
                of.tokens};
  }
  ptx::WaitForCopies<0>();
  __syncthreads();
  int columns = 1;
  if (p.t > 1)
#pragma unroll 1
    for (int i = 0; i < count; ++i) columns = max(columns, items[i].rows);
  return columns;
}

__device__ __forceinline__ void Finish(const FewParams& p, const Plan& plan, const Item& item,
                                       const FewGroup& group, const float* sums, int sum_floats,
                                       const RowScale* scales, int column, int row) {
  const float gate = scales[row].Apply(AddSlices(sums, plan.slices, sum_floats));
  float up = 0.0f;
  if (plan.parts > 1) {
    up = scales[kTileRows + row].Apply(
        AddSlices(sums + plan.slices * sum_floats, plan.slices, sum_floats));
  }
  const float value = Activate(p.activation, ptx::RoundBf16(gate), ptx::RoundBf16(up));
  const int n = item.tile * kTileRows + row;
  const int f = group.expert == p.routing.experts ? p.shared_f : p.f;
  uint16_t* const h = p.h + (group.first_row + column) * p.h_stride + n;
  *h = static_cast<uint16_t>(ptx::PackBf16(value, 0.0f));
  // What FC2 reads beside the last tile.
  if (n - row + kTileRows == f) {
    const int end = (f + kTileColumns - 1) / kTileColumns * kTileColumns;
#pragma unroll 1
    for (int m = n + kTileRows; m < end; m += kTileRows) h[m - n] = 0;
  }
}

template <Formats kFormats>
__global__ void __launch_bounds__(kFewThreads, 2)
    FewGateUpKernel(const __grid_constant__ FewParams p, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) std::byte memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  FewChoice choice;
  PlaceChoice(memory + plan.choice_at, p, &choice);
  auto* const items = reinterpret_cast<Item*>(memory + plan.items_at);
  auto* const x = reinterpret_cast<uint16_t*>(memory + plan.x_at);
  LoadTable(p, p.gate_up, choice);
  TouchParams(p);
  ptx::WaitForPredecessor();
  // After the wait: few_tokens.h.
  ptx::LaunchSuccessor();
  CopyX(p, plan, x);
  const int routed_groups =
      FindGroups<false>(p, choice, p.shared.gate.data, reinterpret_cast<float*>(memory));
  const int all_items = routed_groups * plan.routed_tiles + plan.shared_tiles;
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int share_begin = all_items * block / blocks;
  const int share_items = all_items * (block + 1) / blocks - share_begin;
  const int columns =
      ListItems(p, plan, choice.groups, routed_groups, share_begin, share_items, items);

  const int units_of_item = plan.parts * plan.slices;
  const int units = share_items * units_of_item;
  Cursor ahead = {warp, 0, warp};
  ahead.Settle(units_of_item);
  Cursor now = ahead;
  WarpRing<kStages> ring(memory + warp * kStages * plan.ring.stage_bytes, plan.ring);
  const auto fill = [&] {
    if (ahead.unit >= units) return ring.Skip();
    ring.template Fill<kFormats>(SliceOf<kFormats>(items[ahead.item], ahead, plan), Source{}, lane);
    ahead.Step(units_of_item);
  };
#pragma unroll 1
  for (int s = 0; s < kStages; ++s) fill();

  const uint16_t* const lane_x = x + lane % 4 * 16;
  const int sum_floats = columns * kColumnStride;
  const int column_shift = 32 - __clz(columns - 1);
  const int item_floats = units_of_item * sum_floats;
  const bool one_batch = share_items <= min(kBatchItems, plan.partial_floats / item_floats);
  const int batch_items =
      one_batch ? share_items : min(kBatchItems, plan.partial_floats / 2 / item_floats);
  int buffer = 0;
  for (int first_item = 0; first_item < share_items; buffer ^= 1) {
    const int end_item = min(first_item + batch_items, share_items);
    auto* const partial =
        reinterpret_cast<float*>(memory + plan.partial_at) + buffer * (plan.partial_floats / 2);
    auto* const scales =
        reinterpret_cast<RowScale*>(memory + plan.scales_at) + buffer * kFewThreads;
    // On its way while slices are summed.
    RowScale scale = {};
    const int scaled = first_item + static_cast<int>(threadIdx.x) / (2 * kTileRows);
    if (scaled < end_item) {
      scale = LoadScale(p, choice.groups[items[scaled].group], items[scaled].tile,
                        threadIdx.x / kTileRows % plan.parts, threadIdx.x % kTileRows);
    }
    const int end_unit = end_item * units_of_item;
    float* to = partial + (now.unit - first_item * units_of_item) * sum_floats;
    for (; now.unit < end_unit; to += kWarps * sum_floats) {
      const Item& item = items[now.item];
      const LaneRows<1> rows = {lane_x + (item.tokens >> lane / 4 * 4 & 15) * plan.x_stride};
      float sum[1][4];
      SumSlice<kFormats, 1, false>(ring, SliceOf<kFormats>(item, now, plan), Source{}, rows, lane,
                                   sum);
      fill();
      StoreSums(to, item.rows, lane, sum);
      now.Step(units_of_item);
    }
    scales[threadIdx.x] = scale;
    __syncthreads();
    const int outputs = (end_item - first_item) * kTileRows << column_shift;
#pragma unroll 1
    for (int i = threadIdx.x; i < outputs; i += kFewThreads) {
      const int row = i % kTileRows, rest = i / kTileRows;
      const int column = rest & ((1 << column_shift) - 1), of_batch = rest >> column_shift;
      const Item& item = items[first_item + of_batch];
      if (column >= item.rows) continue;
      Finish(p, plan, item, choice.groups[item.group],
             partial + of_batch * item_floats + column * kColumnStride + row, sum_floats,
             scales + of_batch * 2 * kTileRows, column, row);
    }
    first_item = end_item;
  }
}

// Blocks that share a multiprocessor with the next launch's, while that loads its first weights.
constexpr int64_t kSharedOfTwo = 140 * 1024;

// False where shared memory is too small.
bool MakePlan(const FewParams& p, const WeightSet& set, Plan* plan) {
  plan->parts = p.activation.gated() ? 2 : 1;
  plan->slices = set.slices;
  plan->k_tiles = set.like.k_tiles;
  plan->tile_bytes = set.tile_bytes;
  plan->routed_tiles = p.f / kTileRows;
  plan->shared_tiles = p.shared_f / kTileRows;
  plan->routed_up = plan->routed_tiles * set.tile_bytes;
  plan->shared_up = plan->shared_tiles * set.tile_bytes;
  plan->x_stride = p.d + 8;
  const int64_t groups = std::min(p.t * p.routing.top_k, p.routing.experts);
  const int64_t items =
      (groups * plan->routed_tiles + plan->shared_tiles) / CurrentDevice().multiprocessors + 1;
  const int64_t item_bytes = int64_t{4} * plan->parts * plan->slices * p.t * kColumnStride;
  const int64_t most = CurrentDevice().shared_memory_per_block;
  plan->ring = {.stages = kStages, .stage_bytes = set.slice_bytes};
  uint32_t used = 0;
  const auto take = [&](int64_t bytes) {
    const uint32_t at = used;
    used += static_cast<uint32_t>((bytes + 15) / 16 * 16);
    return at;
  };
  FewChoice ignored;
  take(int64_t{kWarps} * kStages * set.slice_bytes);
  plan->scales_at = take(2 * kFewThreads * int64_t{sizeof(RowScale)});
  plan->x_at = take(int64_t{2} * p.t * plan->x_stride);
  plan->items_at = take(items * int64_t{sizeof(Item)});
  plan->choice_at = take(PlaceChoice(nullptr, p, &ignored));
  const int64_t left = (p.t <= 2 ? std::min(kSharedOfTwo, most) : most) - used;
  const int64_t wanted = std::min<int64_t>(items, kBatchItems) * item_bytes;
  const int64_t partial = std::max(std::min(wanted, left), 2 * item_bytes) / 32 * 32;
  plan->partial_floats = static_cast<int32_t>(partial / 4);
  plan->partial_at = take(partial);
  plan->shared_bytes = used;
  return used <= most;
}

}  // namespace

bool FewTakes(const FewParams& p, const FewSets& sets) {
  const auto like = [](const WeightSet& set, const WeightSet& other) {
    return set.slices > 0 && set.uniform &&
           (other.slices == 0 || (other.uniform && other.like.format == set.like.format));
  };
  if (!sets.stacked || p.t > kFewTokens || p.routing.experts > kFewExperts ||
      p.t * p.routing.top_k > kFewSlots)
    return false;
  if (!like(sets.gate_up, sets.shared_gate_up) || !like(sets.down, sets.shared_down) ||
      sets.gate_up.like.format != sets.down.like.format || FormatsOf(sets.gate_up) == Formats::kAny)
    return false;
  if (p.f % kTileRows != 0 || p.shared_f % kTileRows != 0 ||
      (p.shared_f > 0 && sets.shared_gate_up.like.k_tiles != sets.gate_up.like.k_tiles))
    return false;
  Plan ignored;
  return MakePlan(p, sets.gate_up, &ignored) && FewDownFits(p, sets);
}

void FewGateUp(const OpContext& context, const FewParams& p, const FewSets& sets) {
  const auto kernel = FormatsOf(sets.gate_up) == Formats::kNvfp4 ? FewGateUpKernel<Formats::kNvfp4>
                                                                 : FewGateUpKernel<Formats::kMxfp4>;
  Plan plan;
  MakePlan(p, sets.gate_up, &plan);
  PreferSharedMemory(kernel);
  LaunchPdl(kernel, static_cast<unsigned>(CurrentDevice().multiprocessors), kFewThreads,
            plan.shared_bytes, StreamOf(context), p, plan);
}

}  // namespace nibble::kernels::cuda::moe
