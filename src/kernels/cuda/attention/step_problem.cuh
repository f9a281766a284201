// The decode step's attention as a kernel parameter: one token per sequence, with its rotation,
// cache write and output gate.
#pragma once

#include "kernels/cuda/attention/attention_problem.cuh"
#include "kernels/cuda/prefill/token_places.cuh"
#include "kernels/cuda/rope/cache_write.cuh"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

inline constexpr int kStepRows = 8;  // query heads of a KV head, at most: the N of the MMAs
inline constexpr int kStepThreads = 256;
inline constexpr int kStepWarps = kStepThreads / 32;

struct StepProblem : AttentionProblem {
  RopeAndCacheParams rope;
  CacheSide k_side;
  CacheSide v_side;
  const uint16_t* gate;
  int64_t gate_stride;
  int32_t slices_shift;  // log2 of the slices that a CTA of a cluster merges
  TokenPlaces places;    // of the output, where it is laid out
};

// Positions that the newest token of a sequence sees.
__device__ __forceinline__ KeyRange KeysOfStep(const AttentionProblem& p, int kv_len) {
  const int position = kv_len - 1;
  int first = p.window > 0 ? max(0, position - p.window + 1) : 0;
  if (p.chunk > 0) first = max(first, position / p.chunk * p.chunk);
  return {first, position};
}

// What a lane of the MMAs holds of the values' sums of a slice of 16 dimensions: two dimensions of
// queries 2q and 2q + 1, (first, 2q), (first, 2q + 1), (second, 2q), (second, 2q + 1). They are
// neighbours but for BF16. Of NVFP4, two slices have every second two of 32 dimensions.
template <KvFormat kFormat>
__device__ __forceinline__ int StepDim(int slice, int g, int which) {
  if constexpr (kFormat == KvFormat::kBf16) return slice * 16 + g + 8 * which;
  if constexpr (kFormat == KvFormat::kFp8) return slice * 16 + 2 * g + which;
  return slice / 2 * 32 + 4 * g + slice % 2 * 2 + which;
}

// An item with its queries' maxima and sums of weights: merged ascending, begins as nothing.
struct StepItem {
  float o[4] = {};
  float m[2] = {MinusInfinity(), MinusInfinity()};
  float l[2] = {};

  __device__ __forceinline__ void Add(float2 other_m, float2 other_l, float4 other_o) {
    const MergeFactors first = Merge(m[0], other_m.x);
    const MergeFactors second = Merge(m[1], other_m.y);
    l[0] = Merged(l[0], other_l.x, first);
    l[1] = Merged(l[1], other_l.y, second);
    o[0] = Merged(o[0], other_o.x, first);
    o[1] = Merged(o[1], other_o.y, second);
    o[2] = Merged(o[2], other_o.z, first);
    o[3] = Merged(o[3], other_o.w, second);
  }
  __device__ __forceinline__ void Add(const StepItem& other) {
    Add({other.m[0], other.m[1]}, {other.l[0], other.l[1]},
        {other.o[0], other.o[1], other.o[2], other.o[3]});
  }
};

}  // namespace nibble::kernels::cuda
