// A block owns rows of down: 16 at a time, of all groups, whose slices its warps take in turns. Its
// threads then add, per token and row, finished expert outputs by ascending expert. Nobody else
// writes there, so the order is fixed.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/few_choice.cuh"
#include "kernels/cuda/moe/slice.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/shared_memory_split.h"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kWarps = kFewThreads / 32;
static_assert(kFewTokens * kTileRows <= kFewThreads);

// Up to so many tokens, rows of h are staged beside the weights, and two blocks share a
// multiprocessor.
constexpr int kStagedRows = 2;

template <bool kStaged>
inline constexpr int kStagesOf = kStaged ? 2 : 4;

struct Plan {
  RingShape ring;
  int32_t routed_slices = 0;
  int32_t shared_slices = 0;
  int32_t routed_k_tiles = 0;
  int32_t shared_k_tiles = 0;
  int32_t routed_tile_bytes = 0;
  int32_t shared_tile_bytes = 0;
  uint32_t slice_inverse = 0;  // ⌈2^32 / routed_slices⌉
  int32_t partial_floats = 0;  // of one of two buffers
  // Shared memory, in bytes from its begin; the ring comes first.
  uint32_t partial_at = 0;  // (2, rows of h, slices)
  uint32_t scales_at = 0;   // (2, groups, 16)
  uint32_t choice_at = 0;
  uint32_t shared_bytes = 0;
};

// Slices of all groups of a row tile, group by group.
struct Units {
  int routed_groups;
  int routed;  // slices of routed groups
  int all;
  uint32_t slice_inverse;
  int routed_slices;
};

// Walks the slices that one warp takes.
struct Cursor {
  int tile;
  int unit;  // of the tile

  __device__ __forceinline__ void Settle(const Units& units) {
    while (unit >= units.all) unit -= units.all, ++tile;
  }
  __device__ __forceinline__ void Step(const Units& units) {
    unit += kWarps;
    Settle(units);
  }
  __device__ __forceinline__ int group(const Units& units) const {
    if (unit >= units.routed) return units.routed_groups;
    return units.routed_slices == 1 ? unit : static_cast<int>(__umulhi(unit, units.slice_inverse));
  }
};

template <Formats kFormats>
__device__ __forceinline__ Slice SliceOf(const Plan& plan, const std::byte* data, bool is_shared,
                                         int tile, int slice) {
  constexpr TileFormat kFormat = kOnlyFormat<kFormats>;
  constexpr int kStride = kSliceTiles * CodeBytes(kFormat) + ScaleBytes(kFormat, 0);
  const int k_tiles = is_shared ? plan.shared_k_tiles : plan.routed_k_tiles;
  const int tile_bytes = is_shared ? plan.shared_tile_bytes : plan.routed_tile_bytes;
  return {data + (int64_t{tile} * tile_bytes + slice * kStride), slice * kSliceTiles,
          min(k_tiles - slice * kSliceTiles, kSliceTiles)};
}

// Floats before the sums of a row of h.
__device__ __forceinline__ int SumsOf(const FewParams& p, const Plan& plan, int row) {
  const int shared_rows = p.shared_f > 0 ? p.t : 0;
  const int slices = row < shared_rows ? row * plan.shared_slices
                                       : shared_rows * plan.shared_slices +
                                             (row - shared_rows) * plan.routed_slices;
  return slices * kColumnStride;
}

__device__ __forceinline__ void LoadScales(const FewParams& p, const FewGroup* groups, int count,
                                           int tile, RowScale* scales) {
#pragma unroll 1
  for (int i = threadIdx.x; i < count * kTileRows; i += kFewThreads) {
    const int e = groups[i / kTileRows].expert, n = tile * kTileRows + i % kTileRows;
    const Expert& expert = e == p.routing.experts ? p.shared : p.experts[e];
    const float* const bias = expert.down_bias;
    scales[i] = {expert.down_scales[n], bias == nullptr ? 0.0f : bias[n]};
  }
}

// Finished outputs of all rows of h, in place of the sums of their first slices.
__device__ __forceinline__ void FinishOutputs(const FewParams& p, const Plan& plan,
                                              const FewChoice& choice, int rows, int routed_groups,
                                              const RowScale* scales, float* partial) {
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * kTileRows; i += kFewThreads) {
    const int row = i / kTileRows, n = i % kTileRows, group = choice.row_group[row];
    float* const at = partial + SumsOf(p, plan, row) + n;
    const int slices = group == routed_groups ? plan.shared_slices : plan.routed_slices;
    *at = scales[group * kTileRows + n].Apply(AddSlices(at, slices, kColumnStride));
  }
}

__device__ __forceinline__ float SumPlaces(const FewParams& p, const Plan& plan,
                                           const FewPlace* places, const float* partial, int token,
                                           float shared_weight) {
  float sum = 0.0f;
#pragma unroll 4
  for (int j = 0; j < p.routing.top_k; ++j) {
    const FewPlace place = places[j];
    if (place.row >= 0) sum = __fmaf_rn(place.weight, partial[SumsOf(p, plan, place.row)], sum);
  }
  if (p.shared_f > 0) sum = __fmaf_rn(shared_weight, partial[SumsOf(p, plan, token)], sum);
  return sum;
}

template <Formats kFormats, bool kStaged>
__global__ void __launch_bounds__(kFewThreads, kStaged ? 2 : 1)
    FewDownKernel(const __grid_constant__ FewParams p, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) std::byte memory[];
  constexpr int kStages = kStagesOf<kStaged>;
  constexpr int kWeightBytes =
      kSliceTiles * CodeBytes(kOnlyFormat<kFormats>) + ScaleBytes(kOnlyFormat<kFormats>, 0);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row_tiles = static_cast<int>(p.d) / kTileRows;
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int first_tile = row_tiles * block / blocks, end_tile = row_tiles * (block + 1) / blocks;
  if (first_tile == end_tile) return;
  FewChoice choice;
  PlaceChoice(memory + plan.choice_at, p, &choice);
  LoadTable(p, p.down, choice);
  TouchParams(p);
  // The logits are there before the wait: few_tokens.h.
  const int routed_groups =
      FindGroups<true>(p, choice, p.shared.down.data, reinterpret_cast<float*>(memory));
  const FewGroup* const groups = choice.groups;
  const int all_groups = routed_groups + (p.shared_f > 0 ? 1 : 0);
  const int routed_units = routed_groups * plan.routed_slices;
  const Units units = {routed_groups, routed_units,
                       routed_units + (p.shared_f > 0 ? plan.shared_slices : 0), plan.slice_inverse,
                       plan.routed_slices};
  Cursor now = {first_tile, warp};
  if (units.all == 0) {
    now.tile = end_tile;
  } else {
    now.Settle(units);
  }
  Cursor ahead = now;
  WarpRing<kStages> ring(memory + warp * kStages * plan.ring.stage_bytes, plan.ring);

  const auto copy_h = [&](std::byte* stage, const Cursor& at) {
    const int g = at.group(units);
    const FewGroup& group = groups[g];
    const int slice = at.unit - g * plan.routed_slices;
    const int column = slice * kSliceColumns + lane * 8;
    const int f = g == routed_groups ? p.shared_f : p.f;
    if (column >= (f + kTileColumns - 1) / kTileColumns * kTileColumns) return;
    const uint32_t to = ptx::SharedAddress(stage + kWeightBytes) + lane * 16;
    const uint16_t* const from = p.h + group.first_row * p.h_stride + column;
#pragma unroll 1
    for (int row = 0; row < group.rows; ++row)
      ptx::CopyAsync16To(to + row * kSliceColumns * 2, from + row * p.h_stride);
  };
  const auto fill = [&](bool with_h) {
    if (ahead.tile >= end_tile) return ring.Skip();
    const int g = ahead.group(units);
    const Slice slice = SliceOf<kFormats>(plan, groups[g].data, g == routed_groups, ahead.tile,
                                          ahead.unit - g * plan.routed_slices);
    if (kStaged && with_h) copy_h(ring.Filling(), ahead);
    ring.template Fill<kFormats>(slice, Source{}, lane);
    ahead.Step(units);
  };
#pragma unroll 1
  for (int s = 0; s < kStages; ++s) fill(false);
  auto* const all_scales = reinterpret_cast<RowScale*>(memory + plan.scales_at);
  LoadScales(p, groups, all_groups, first_tile, all_scales);
  const int row = threadIdx.x % kTileRows, token = threadIdx.x / kTileRows;
  const bool sums = token < p.t;
  const float shared_weight =
      sums && p.shared_logits != nullptr ? Sigmoid(__ldcg(p.shared_logits + token)) : 1.0f;
  int rows = p.shared_f > 0 ? p.t : 0;
#pragma unroll 1
  for (int g = 0; g < routed_groups; ++g) rows += groups[g].rows;
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if constexpr (kStaged) {
    Cursor at = now;
    std::byte* stage = ring.Filling();
#pragma unroll 1
    for (int s = 0; s < kStages && at.tile < end_tile; ++s, at.Step(units))
      copy_h(stage + s * plan.ring.stage_bytes, at);
    ptx::CommitCopies();
    ptx::WaitForCopies<0>();
  }

  for (int tile = first_tile, buffer = 0; tile < end_tile; ++tile, buffer ^= 1) {
    float* const partial =
        reinterpret_cast<float*>(memory + plan.partial_at) + buffer * plan.partial_floats;
    RowScale* const scales = all_scales + buffer * (p.t * p.routing.top_k + 1) * kTileRows;
    const int64_t at = int64_t{token} * p.d + tile * kTileRows + row;
    const uint16_t before = p.add && sums ? p.out[at] : 0;
    if (tile > first_tile) LoadScales(p, groups, all_groups, tile, scales);
    while (now.tile == tile) {
      const int g = now.group(units);
      const FewGroup& group = groups[g];
      const int slice_index = now.unit - g * plan.routed_slices;
      const Slice slice =
          SliceOf<kFormats>(plan, group.data, g == routed_groups, tile, slice_index);
      const int lane_row = min(lane / 4, group.rows - 1);
      float sum[1][4];
      if constexpr (kStaged) {
        SumStagedSlice<kFormats>(ring, slice.tiles, lane_row, lane, sum);
      } else {
        const LaneRows<1> rows_of_lane = {p.h + (group.first_row + lane_row) * p.h_stride +
                                          lane % 4 * 16};
        SumSlice<kFormats, 1, true>(ring, slice, Source{}, rows_of_lane, lane, sum);
      }
      fill(true);
      const int slices = g == routed_groups ? plan.shared_slices : plan.routed_slices;
      StoreSums(partial + SumsOf(p, plan, group.first_row) + slice_index * kColumnStride,
                group.rows, lane, sum, slices * kColumnStride);
      now.Step(units);
    }
    __syncthreads();
    FinishOutputs(p, plan, choice, rows, routed_groups, scales, partial);
    __syncthreads();
    if (!sums) continue;
    const float y = SumPlaces(p, plan, choice.places + token * p.routing.top_k, partial + row,
                              token, shared_weight);
    if (p.out_f32 != nullptr) {
      p.out_f32[at] = y;
    } else {
      const float sum = p.add ? ptx::FirstBf16(before) + ptx::RoundBf16(y) : y;
      p.out[at] = static_cast<uint16_t>(ptx::PackBf16(sum, 0.0f));
    }
  }
}

Plan MakePlan(const FewParams& p, const FewSets& sets) {
  Plan plan;
  plan.routed_slices = sets.down.slices;
  plan.routed_k_tiles = sets.down.like.k_tiles;
  plan.routed_tile_bytes = sets.down.tile_bytes;
  plan.shared_slices = p.shared_f > 0 ? sets.shared_down.slices : 0;
  plan.shared_k_tiles = sets.shared_down.like.k_tiles;
  plan.shared_tile_bytes = sets.shared_down.tile_bytes;
  plan.slice_inverse = static_cast<uint32_t>((uint64_t{1} << 32) / plan.routed_slices + 1);
  const bool staged = p.t <= kStagedRows;
  const int stages = staged ? kStagesOf<true> : kStagesOf<false>;
  plan.ring = {.stages = stages, .stage_bytes = sets.down.slice_bytes};
  if (staged) plan.ring.stage_bytes += p.t * kSliceColumns * 2;
  const int64_t slots = int64_t{p.t} * p.routing.top_k;
  plan.partial_floats =
      static_cast<int32_t>((slots * plan.routed_slices + p.t * plan.shared_slices) * kColumnStride);
  FewChoice ignored;
  uint32_t used = 0;
  const auto take = [&](int64_t bytes) {
    const uint32_t at = used;
    used += static_cast<uint32_t>((bytes + 15) / 16 * 16);
    return at;
  };
  take(int64_t{kWarps} * stages * plan.ring.stage_bytes);
  const int buffers = p.d / kTileRows > CurrentDevice().multiprocessors ? 2 : 1;
  plan.partial_at = take(int64_t{4} * buffers * plan.partial_floats);
  plan.scales_at = take(buffers * (slots + 1) * kTileRows * int64_t{sizeof(RowScale)});
  plan.choice_at = take(PlaceChoice(nullptr, p, &ignored));
  plan.shared_bytes = used;
  return plan;
}

template <Formats kFormats>
auto KernelOf(const FewParams& p) {
  return p.t <= kStagedRows ? FewDownKernel<kFormats, true> : FewDownKernel<kFormats, false>;
}

}  // namespace

bool FewDownFits(const FewParams& p, const FewSets& sets) {
  return MakePlan(p, sets).shared_bytes <=
         static_cast<uint32_t>(CurrentDevice().shared_memory_per_block);
}

void FewDown(const OpContext& context, const FewParams& p, const FewSets& sets) {
  const auto kernel = FormatsOf(sets.down) == Formats::kNvfp4 ? KernelOf<Formats::kNvfp4>(p)
                                                              : KernelOf<Formats::kMxfp4>(p);
  const Plan plan = MakePlan(p, sets);
  PreferSharedMemory(kernel);
  LaunchPdl(kernel, static_cast<unsigned>(CurrentDevice().multiprocessors), kFewThreads,
            plan.shared_bytes, StreamOf(context), p, plan);
}

}  // namespace nibble::kernels::cuda::moe
