// Device functions of sampling: the order of tokens, weights, buckets, reductions of a CTA.
#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/sample/layout.h"

namespace nibble::kernels::cuda::sampling {

// Of edits: NaN counts as -inf, +inf as the largest finite value; zeros are alike.
__device__ __forceinline__ float Clean(float logit) {
  return isnan(logit) ? -INFINITY : fminf(logit, FLT_MAX) + 0.0f;
}

// A token's place among others as a number, the better one smaller: by logit, then by id.
__device__ __forceinline__ uint64_t RankKey(float logit, int64_t token) {
  const uint32_t bits = __float_as_uint(logit);
  const uint32_t ascending = bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
  return (uint64_t{~ascending} << 32) | static_cast<uint32_t>(token);
}
__device__ constexpr uint64_t kNone = ~uint64_t{0};
__device__ constexpr uint64_t kBroken =
    0;  // better than any: a raw logit of the row is NaN or +inf
__device__ __forceinline__ bool IsToken(uint64_t key) { return key != kNone && key != kBroken; }

__device__ __forceinline__ int32_t TokenOf(uint64_t key) { return static_cast<int32_t>(key); }
__device__ __forceinline__ float LogitOf(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ascending ^ ((ascending >> 31) != 0 ? 0x80000000u : 0xFFFFFFFFu));
}

// How far a logit lies below the best one, in nats of the tempered distribution.
__device__ __forceinline__ float Nats(float logit, float best, float inverse_temperature) {
  return (best - logit) * inverse_temperature;
}

// Steps of 1/160 up to 10 nats, then of 1/16; the last one holds the rest. Never falls with nats.
__device__ __forceinline__ int BucketOf(float nats) {
  constexpr float kFine = 10.0f;
  constexpr int kFineBuckets = 1600;
  if (nats < kFine) return static_cast<int>(nats * (kFineBuckets / kFine));
  const float rest = fminf((nats - kFine) * 16.0f, static_cast<float>(kBuckets - kFineBuckets - 1));
  return kFineBuckets + static_cast<int>(rest);
}

__device__ __forceinline__ uint64_t MassOf(float weight) {
  return __float2ull_rn(weight * 0x1p39f);
}

// Operations on two values, and on those of a warp's lanes.
struct MinOf {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? a : b; }
  __device__ uint64_t OverWarp(uint64_t value) const {
    const auto high = static_cast<uint32_t>(value >> 32);
    const uint32_t best = __reduce_min_sync(kAllLanes, high);
    const uint32_t low = high == best ? static_cast<uint32_t>(value) : 0xFFFFFFFFu;
    return (uint64_t{best} << 32) | __reduce_min_sync(kAllLanes, low);
  }
};
struct MaxOf {
  __device__ int OverWarp(int value) const { return __reduce_max_sync(kAllLanes, value); }
};
struct SumOf {
  __device__ int OverWarp(int value) const { return __reduce_add_sync(kAllLanes, value); }
  __device__ float OverWarp(float value) const { return WarpSum(value); }
  // By parts of 20 bits, whose sums fit 32.
  __device__ uint64_t OverWarp(uint64_t value) const {
    constexpr uint32_t kPart = (1u << 20) - 1;
    const auto sum = [](uint64_t part) {
      return uint64_t{__reduce_add_sync(kAllLanes, static_cast<uint32_t>(part))};
    };
    return sum(value & kPart) + (sum((value >> 20) & kPart) << 20) + (sum(value >> 40) << 40);
  }
};

// Over all threads, the same in each; for operations that do not depend on an order. `shared` has
// 32 places; a barrier comes first, so that it may have been in use.
template <typename T, typename Op>
__device__ __forceinline__ T Reduce(T value, T identity, Op op, T* shared) {
  value = op.OverWarp(value);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  __syncthreads();
  if (lane == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  return op.OverWarp(lane < static_cast<int>(blockDim.x) / kWarp ? shared[lane] : identity);
}

// The sum over the threads before this one.
template <typename T>
__device__ __forceinline__ T SumBefore(T value, T* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto scan = [&](T v) {
#pragma unroll
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
      const T other = __shfl_up_sync(kAllLanes, v, lanes);
      if (lane >= lanes) v += other;
    }
    return v;
  };
  const T inclusive = scan(value);
  __syncthreads();
  if (lane == kWarp - 1) shared[threadIdx.x / kWarp] = inclusive;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const T warp_sums = scan(lane < warps ? shared[lane] : T{0});
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const T before = __shfl_sync(kAllLanes, warp_sums, warp > 0 ? warp - 1 : 0);
  return inclusive - value + (warp > 0 ? before : T{0});
}

// Of the row's chunks; every warp works it out for itself.
template <typename Member>
__device__ __forceinline__ uint64_t BestOfChunks(const ChunkSurvey* surveys, int chunks,
                                                 Member member) {
  uint64_t best = kNone;
  for (int c = static_cast<int>(threadIdx.x) % kWarp; c < chunks; c += kWarp)
    best = MinOf()(best, surveys[c].*member);
  return MinOf().OverWarp(best);
}

struct BestTokens {
  uint64_t raw;
  uint64_t edited;
};
// The row's best_raw and best, with one pass over its chunks.
__device__ __forceinline__ BestTokens BestOfRow(const ChunkSurvey* surveys, int chunks) {
  BestTokens best = {kNone, kNone};
#pragma unroll 2
  for (int c = static_cast<int>(threadIdx.x) % kWarp; c < chunks; c += kWarp) {
    best.raw = MinOf()(best.raw, surveys[c].best_raw);
    best.edited = MinOf()(best.edited, surveys[c].best);
  }
  return {MinOf().OverWarp(best.raw), MinOf().OverWarp(best.edited)};
}

}  // namespace nibble::kernels::cuda::sampling
