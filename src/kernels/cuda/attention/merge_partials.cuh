// The second kernel of a split attention: merges the partial results of query rows in the order of
// attention_order.cuh. A half-warp takes 64 dimensions of a row, a slice, four a lane, and merges a
// group of keys at a time; `groups` half-warps share a slice, then its groups are merged ascending.
#pragma once

#include "kernels/cuda/attention/attention_problem.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kMergeHalfWarps = 16;  // of a CTA
inline constexpr int kMergeDims = 64;
static_assert(kBlocksPerGroup == 16);  // one per lane of a half-warp

__host__ __device__ inline int32_t SlicesOf(const AttentionProblem& p) {
  return (p.dim_atoms * 16 + kMergeDims - 1) / kMergeDims;
}

struct PartialSlice {
  float m;
  float l;
  float4 o;
};

__device__ __forceinline__ void MergeInto(PartialSlice& into, const PartialSlice& from) {
  const MergeFactors factors = Merge(into.m, from.m);
  into.l = Merged(into.l, from.l, factors);
  into.o.x = Merged(into.o.x, from.o.x, factors);
  into.o.y = Merged(into.o.y, from.o.y, factors);
  into.o.z = Merged(into.o.z, from.o.z, factors);
  into.o.w = Merged(into.o.w, from.o.w, factors);
}

// A row's entries of its tile.
struct PartialRow {
  const float* o;  // of unit 0, at this lane's dimensions; null beyond Dh
  const float* ml;
  int64_t stride;  // between units
  int32_t l_offset;

  __device__ __forceinline__ float4 Values(int unit) const {
    return o == nullptr ? float4{} : *reinterpret_cast<const float4*>(o + unit * stride);
  }
  __device__ __forceinline__ float Maximum(int unit) const { return ml[unit * stride]; }
  __device__ __forceinline__ float Sum(int unit) const { return ml[unit * stride + l_offset]; }
};

// One group from its blocks, of which units [begin, end) were computed; block i of the group is
// unit first + i. Factors are computed by one lane per block.
__device__ __forceinline__ PartialSlice MergeBlocks(const PartialRow& row, int first, int begin,
                                                    int end) {
  const int lane = threadIdx.x % 16;
  const bool mine = first + lane >= begin && first + lane < end;
  const float m = mine ? row.Maximum(first + lane) : MinusInfinity();
  const float l = mine ? row.Sum(first + lane) : 0.0f;
  float4 values[kBlocksPerGroup];
#pragma unroll
  for (int i = 0; i < kBlocksPerGroup; ++i)
    values[i] = first + i >= begin && first + i < end ? row.Values(first + i) : float4{};

  float running = m;
#pragma unroll
  for (int distance = 1; distance < 16; distance *= 2) {
    const float other = __shfl_up_sync(0xffffffff, running, distance, 16);
    if (lane >= distance) running = fmaxf(running, other);
  }
  float before = __shfl_up_sync(0xffffffff, running, 1, 16);
  if (lane == 0) before = MinusInfinity();
  const float reference = Reference(running);
  const float keep = Exp2(before - reference);
  const float add = Exp2(m - reference);

  PartialSlice group = {__shfl_sync(0xffffffff, running, 15, 16), 0.0f, {}};
  const bool few = __all_sync(0xffffffff, first + kBlocksPerGroup / 4 >= end);
#pragma unroll
  for (int i = 0; i < kBlocksPerGroup; ++i) {
    if (i == kBlocksPerGroup / 4 && few) break;
    const MergeFactors factors = {__shfl_sync(0xffffffff, keep, i, 16),
                                  __shfl_sync(0xffffffff, add, i, 16)};
    group.l = Merged(group.l, __shfl_sync(0xffffffff, l, i, 16), factors);
    group.o.x = Merged(group.o.x, values[i].x, factors);
    group.o.y = Merged(group.o.y, values[i].y, factors);
    group.o.z = Merged(group.o.z, values[i].z, factors);
    group.o.w = Merged(group.o.w, values[i].w, factors);
  }
  return group;
}

__global__ void __launch_bounds__(kMergeHalfWarps * 16)
    MergePartialsKernel(const __grid_constant__ AttentionProblem p, int groups_at_once,
                        int slices) {
  __shared__ float4 group_o[kMergeHalfWarps][16];
  __shared__ float group_m[kMergeHalfWarps];
  __shared__ float group_l[kMergeHalfWarps];
  const int lane = threadIdx.x % 16;
  const int half_warp = threadIdx.x / 16;
  const int my_group = half_warp % groups_at_once;
  const int my_slice = (blockIdx.x * kMergeHalfWarps + half_warp) / groups_at_once;
  const int slices_of_row = SlicesOf(p);
  const int row_of_step = min(my_slice, slices - 1) / slices_of_row;
  const int token = row_of_step / p.q_heads;
  const int head = row_of_step - token * p.q_heads;
  const int kv_head = head / p.heads_per_kv;
  const int head_of_group = head - kv_head * p.heads_per_kv;

  // The search takes a whole warp: once for each half of it.
  AttentionTile tile = {-1};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const AttentionTile found = FindTileOfToken(p, __shfl_sync(0xffffffff, token, half * 16),
                                                __shfl_sync(0xffffffff, head_of_group, half * 16));
    if (half_warp % 2 == half) tile = found;
  }
  KeyRange tile_keys = {0, -1};
  SplitPlan plan = {kGroupKeys, false};
  if (tile.sequence >= 0 && my_slice < slices) {
    tile_keys = KeysOfTile(p, tile, p.tile_rows);
    plan = PlanOf(p, tile_keys);
  }
  ptx::WaitForPredecessor();  // even with nothing to do: the successor relies on it
  ptx::LaunchSuccessor();

  const int row = (token - tile.first_token) * p.heads_per_kv + head_of_group - tile.first_row;
  const int d = my_slice % slices_of_row * kMergeDims + lane * 4;
  const int width = p.dim_atoms * 16;
  const float* entry = PartialEntry(p, tile.slot, kv_head, 0);
  const PartialRow partials = {d < width ? entry + row * width + d : nullptr,
                               entry + p.tile_rows * width + row,
                               PartialFloats(p.tile_rows, p.dim_atoms), p.tile_rows};
  const bool of_blocks = plan.unit_keys == kBlockKeys;
  const int units = plan.partial ? UnitsOf(tile_keys, plan.unit_keys) : 0;
  const int groups = plan.partial ? UnitsOf(tile_keys, kGroupKeys) : 0;
  // Block 0 of the first group, counted in units.
  const int first_unit =
      of_blocks ? tile_keys.first / kGroupKeys * kBlocksPerGroup - tile_keys.first / kBlockKeys : 0;

  PartialSlice total = {MinusInfinity(), 0.0f, {}};
  for (int base = 0; __syncthreads_or(base < groups); base += groups_at_once) {
    const int group = base + my_group;
    PartialSlice merged = {MinusInfinity(), 0.0f, {}};
    const int blocks_end = of_blocks ? units : 0;
    if (__any_sync(0xffffffff, of_blocks && group < groups))
      merged = MergeBlocks(partials, first_unit + group * kBlocksPerGroup, 0, blocks_end);
    if (!of_blocks && group < groups)
      merged = {partials.Maximum(group), partials.Sum(group), partials.Values(group)};
    if (groups_at_once == 1) {
      MergeInto(total, merged);
      continue;
    }
    group_o[half_warp][lane] = merged.o;
    if (lane == 0) {
      group_m[half_warp] = merged.m;
      group_l[half_warp] = merged.l;
    }
    __syncthreads();
    if (my_group == 0) {
      for (int i = 0; i < min(groups_at_once, groups - base); ++i) {
        const int from = half_warp + i;
        MergeInto(total, {group_m[from], group_l[from], group_o[from][lane]});
      }
    }
  }
  if (!plan.partial || my_group != 0) return;
  const float factor =
      OutputFactor(total.m, total.l, p.sinks != nullptr ? p.sinks + head : nullptr, p.value_scale);
  uint16_t* out = p.out + (int64_t{token} * p.q_heads + head) * p.head_dim;
  const float values[4] = {total.o.x, total.o.y, total.o.z, total.o.w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (d + i < p.head_dim) out[d + i] = ToBf16(values[i] * factor);
}

}  // namespace nibble::kernels::cuda
