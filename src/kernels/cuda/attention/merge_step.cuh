// The second kernel of a decode step's attention whose keys CTAs share through global memory:
// merges the partial results of a sequence and KV head in the order of attention_order.cuh. A CTA
// takes a slice of 16 dimensions of the eight queries, a warp a group of keys at a time.
#pragma once

#include "kernels/cuda/attention/step_output.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kMergeWarps = 8;  // at most, as there are groups
inline constexpr int kGroupsOfPass = 32;

// Partial results of a sequence and KV head, seen by a lane.
struct StepPartials {
  const float* entries;
  int64_t stride;  // between units
  int item;        // float4
  int ml;          // of this lane's first query

  __device__ __forceinline__ float4 Values(int unit) const {
    return reinterpret_cast<const float4*>(entries + unit * stride)[item];
  }
  __device__ __forceinline__ float2 Maxima(int unit) const {
    return *reinterpret_cast<const float2*>(entries + unit * stride + ml);
  }
  __device__ __forceinline__ float2 Sums(int unit) const {
    return *reinterpret_cast<const float2*>(entries + unit * stride + ml + kStepRows);
  }

  // Units [begin, end), ascending; a group's blocks are under way at once.
  __device__ __forceinline__ StepItem Merge(int begin, int end) const {
    constexpr int kAtOnce = kBlocksPerGroup;
    StepItem item_so_far;
    for (int first = begin; first < end; first += kAtOnce) {
      float4 o[kAtOnce];
      float2 m[kAtOnce], l[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int unit = min(first + i, end - 1);
        o[i] = Values(unit);
        m[i] = Maxima(unit);
        l[i] = Sums(unit);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (first + i < end) item_so_far.Add(m[i], l[i], o[i]);
    }
    return item_so_far;
  }
};

template <KvFormat kFormat>
__global__ void __launch_bounds__(kMergeWarps * 32)
    MergeStepKernel(const __grid_constant__ StepProblem p) {
  __shared__ float4 group_o[kGroupsOfPass][32];
  __shared__ float2 group_m[kGroupsOfPass][32];
  __shared__ float2 group_l[kGroupsOfPass][32];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int pair = static_cast<int>(blockIdx.x) / p.dim_atoms;
  const int slice = static_cast<int>(blockIdx.x) - pair * p.dim_atoms;
  const int sequence = pair / p.kv_heads;
  const int kv_head = pair - sequence * p.kv_heads;
  const KeyRange keys = KeysOfStep(p, p.kv_len[sequence]);
  const SplitPlan plan = PlanOf(p, keys);
  StepOutput<kFormat> output(p, sequence, kv_head, slice);
  ptx::WaitForPredecessor();  // even with nothing to do: the successor relies on it
  ptx::LaunchSuccessor();
  if (!plan.partial) return;
  if (warp == 0) output.FetchGates();

  const StepPartials partials = {PartialEntry(p, sequence, kv_head, 0),
                                 PartialFloats(p.tile_rows, p.dim_atoms), slice * 32 + lane,
                                 p.dim_atoms * 128 + lane % 4 * 2};
  const int units_per_group = kGroupKeys / plan.unit_keys;
  const int first_unit = keys.first / plan.unit_keys;
  const int units = keys.last / plan.unit_keys - first_unit + 1;
  const int first_group = keys.first / kGroupKeys;
  const int groups = UnitsOf(keys, kGroupKeys);
  StepItem total;
  for (int base = 0; base < groups; base += kGroupsOfPass) {
    const int count = min(kGroupsOfPass, groups - base);
    for (int i = warp; i < count; i += static_cast<int>(blockDim.x) / 32) {
      const int begin = (first_group + base + i) * units_per_group - first_unit;
      const StepItem group = partials.Merge(max(begin, 0), min(begin + units_per_group, units));
      group_o[i][lane] = {group.o[0], group.o[1], group.o[2], group.o[3]};
      group_m[i][lane] = {group.m[0], group.m[1]};
      group_l[i][lane] = {group.l[0], group.l[1]};
    }
    __syncthreads();
    if (warp == 0)
      for (int i = 0; i < count; ++i)
        total.Add(group_m[i][lane], group_l[i][lane], group_o[i][lane]);
    __syncthreads();
  }
  if (warp == 0) output.Store(total);
}

}  // namespace nibble::kernels::cuda
