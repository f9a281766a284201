// The accumulators of a warpgroup's tile, in the order of weight_tiles.h. Of a chain of MMAs comes
// a slice's sum, which goes into the total; or, where columns have scales by groups, a group's,
// which goes into the slice's sum by one FMA.
//
// Of row g a thread has tokens 8 i + 2 q, + 1 in elements 4 i, 4 i + 1; of row g + 8 in the next
// two.
#pragma once

#include <type_traits>

#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/ptx/named_barrier.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kWarpgroupRows = 64;

template <typename Shape>
struct PlainSums {
  static constexpr int kCount = Shape::kN / 2;

  float chain[kCount];
  float total[kCount];

  __device__ __forceinline__ explicit PlainSums(std::byte* /*staging*/) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) total[i] = 0.0f;
  }
  __device__ __forceinline__ void EndSlice() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) total[i] += chain[i];
  }
  __device__ __forceinline__ void Finish(int /*barrier*/) {}
};

// Three accumulators of 128 tokens are more than there are registers for: the last values of the
// total wait in shared memory, where outputs will be staged.
template <typename Shape>
struct GroupSums {
  static constexpr int kCount = Shape::kN / 2;
  static constexpr int kKept = kCount - Shape::kStagedTotals;
  static constexpr int kVectors = Shape::kStagedTotals / 4;

  float chain[kCount];
  float slice[kCount];
  float total[kCount];  // the first kKept until the end
  float4* const staged;

  __device__ __forceinline__ explicit GroupSums(std::byte* staging)
      : staged(reinterpret_cast<float4*>(staging) + threadIdx.x % kWarpgroupThreads) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) slice[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < kKept; ++i) total[i] = 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      staged[v * kWarpgroupThreads] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  __device__ __forceinline__ void EndGroup(GroupScales::Rows scale) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      slice[i] = __fmaf_rn(i % 4 < 2 ? scale.low : scale.high, chain[i], slice[i]);
  }
  __device__ __forceinline__ void EndSlice() {
#pragma unroll
    for (int i = 0; i < kKept; ++i) total[i] += slice[i];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const float* const add = slice + kKept + 4 * v;
      float4 sum = staged[v * kWarpgroupThreads];
      sum.x += add[0];
      sum.y += add[1];
      sum.z += add[2];
      sum.w += add[3];
      staged[v * kWarpgroupThreads] = sum;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) slice[i] = 0.0f;
  }
  // Before the warpgroup stages outputs.
  __device__ __forceinline__ void Finish(int barrier) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const float4 sum = staged[v * kWarpgroupThreads];
      float* const to = total + kKept + 4 * v;
      to[0] = sum.x;
      to[1] = sum.y;
      to[2] = sum.z;
      to[3] = sum.w;
    }
    if constexpr (kVectors > 0) ptx::SyncThreads(barrier, kWarpgroupThreads);
  }
};

template <typename Shape>
using TileSums = std::conditional_t<HasGroups(Shape::kFormat), GroupSums<Shape>, PlainSums<Shape>>;

}  // namespace nibble::kernels::cuda
