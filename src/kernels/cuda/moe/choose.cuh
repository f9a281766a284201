// A token's choice of experts, by a warp. Semantics: Routing in kernels/op_params.h.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/reduce.cuh"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

// Larger floats have larger keys; 0 is below all of them. -0 and 0 are equal.
__device__ __forceinline__ uint32_t OrderedKey(float value) {
  const auto bits = static_cast<int32_t>(__float_as_uint(value + 0.0f));
  return static_cast<uint32_t>(bits ^ ((bits >> 31) | INT_MIN));
}

__device__ __forceinline__ float ValueOfKey(uint32_t key) {
  const auto bits = static_cast<int32_t>(key);
  return __uint_as_float(static_cast<uint32_t>(bits ^ (~(bits >> 31) | INT_MIN)));
}

struct Best {
  uint32_t key;
  int32_t id;
};

// The warp's largest key, and its id, the smallest one among equals.
__device__ __forceinline__ Best WarpBest(uint32_t key, int32_t id) {
  const uint32_t largest = __reduce_max_sync(kAllLanes, key);
  return {largest, __reduce_min_sync(kAllLanes, key == largest ? id : INT_MAX)};
}

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Marks the best top_groups groups in `taken` (groups), by `value` (E). sums: (groups) scratch.
__device__ inline void ChooseGroups(const Routing& routing, const float* value, float* sums,
                                    int* taken) {
  const int lane = threadIdx.x % 32, size = routing.experts / routing.groups;
  for (int g = lane; g < routing.groups; g += 32) {
    float best = -INFINITY, second = -INFINITY;
    for (int i = 0; i < size; ++i) {
      const float v = value[g * size + i];
      second = v > best ? best : fmaxf(second, v);
      best = fmaxf(best, v);
    }
    sums[g] = routing.group_score == GroupScore::kMax || size == 1 ? best : best + second;
    taken[g] = 0;
  }
  for (int round = 0; round < routing.top_groups; ++round) {
    uint32_t key = 0;
    int id = INT_MAX;
    for (int g = lane; g < routing.groups; g += 32) {
      const uint32_t k = taken[g] ? 0 : OrderedKey(sums[g]);
      if (k > key) key = k, id = g;
    }
    const int best = WarpBest(key, id).id;
    if (best % 32 == lane && best < routing.groups) taken[best] = 1;
  }
  __syncwarp();
}

struct Picked {
  float logit;
  int16_t id;
  int16_t place;  // among the token's experts, which ascend
};

// Of a warp's scratch: a value per expert, then an id of 16 bits per expert or what the choice of
// groups needs. Little, as it would be taken from the L1 of kernels that start beside the choice.
__host__ __device__ inline int ScratchStride(int experts) { return (experts + 7) / 8 * 8; }
__host__ __device__ inline int ScratchFloats(const Routing& routing) {
  const int stride = ScratchStride(routing.experts);
  const int groups = routing.groups > 1 ? (2 * routing.groups + 3) / 4 * 4 : 0;
  return stride + (groups > stride / 2 ? groups : stride / 2);
}

// The code of a choice is run once and from a cold cache: loops stay loops, and what few models
// need stays apart.

// The warp's `rank`-th largest value, counted from 0.
__device__ __forceinline__ uint32_t WarpRanked(uint32_t value, int rank) {
  const int lane = threadIdx.x % 32;
  int larger = 0;
#pragma unroll 8
  for (int other = 0; other < 32; ++other) {
    const uint32_t theirs = __shfl_sync(kAllLanes, value, other);
    larger += theirs > value || (theirs == value && other < lane);
  }
  return __reduce_max_sync(kAllLanes, larger == rank ? value : 0);
}

// What turns logits into scores.
struct Scoring {
  bool softmax;
  float largest = 0.0f;
  float inverse_sum = 1.0f;

  __device__ __forceinline__ float operator()(float logit) const {
    return softmax ? expf(logit - largest) * inverse_sum : Sigmoid(logit);
  }
};

// values: the token's logits, of which a lane wrote its own: lane, lane + 32, ...
__device__ __noinline__ inline Scoring FindScoring(const Routing& routing, const float* values,
                                                   bool sums_all) {
  Scoring scoring = {routing.score == RouterScore::kSoftmax};
  if (!scoring.softmax) return scoring;
  const int lane = threadIdx.x % 32;
  uint32_t key = 0;
  for (int e = lane; e < routing.experts; e += 32) key = max(key, OrderedKey(values[e]));
  scoring.largest = ValueOfKey(__reduce_max_sync(kAllLanes, key));
  if (sums_all) {
    float sum = 0.0f;
    for (int e = lane; e < routing.experts; e += 32) sum += expf(values[e] - scoring.largest);
    scoring.inverse_sum = 1.0f / WarpSum(sum);
  }
  return scoring;
}

// From logits to what is chosen by, in place: scores with their bias, -∞ outside of chosen groups.
// sums, taken: (groups) scratch.
__device__ __noinline__ inline void ValuesOfChoice(const Routing& routing, const Scoring& score,
                                                   float* values, float* sums, int* taken) {
  const int lane = threadIdx.x % 32, experts = routing.experts;
#pragma unroll 1
  for (int e = lane; e < experts; e += 32)
    values[e] = score(values[e]) + (routing.choice_bias != nullptr ? routing.choice_bias[e] : 0);
  __syncwarp();
  if (routing.groups == 1) return;
  ChooseGroups(routing, values, sums, taken);
  const int size = experts / routing.groups;
#pragma unroll 1
  for (int e = lane; e < experts; e += 32)
    if (!taken[e / size]) values[e] = -INFINITY;
  __syncwarp();
}

__device__ __forceinline__ void LoadLogits(const float* logits, int experts, float* values) {
  const int lane = threadIdx.x % 32;
  if (experts % 4 != 0) {
#pragma unroll 1
    for (int e = lane; e < experts; e += 32) values[e] = __ldcg(logits + e);
  } else {
    constexpr int kAtOnce = 4;
#pragma unroll 1
    for (int first = lane * 4; first < experts; first += kAtOnce * 128) {
      float4 four[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (first + i * 128 < experts)
          four[i] = __ldcg(reinterpret_cast<const float4*>(logits + first + i * 128));
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (first + i * 128 < experts)
          *reinterpret_cast<float4*>(values + first + i * 128) = four[i];
    }
  }
  __syncwarp();
}

// Those among whom the chosen ones are, ascending by id: at least top_k, and hardly more.
struct Candidates {
  uint32_t* keys;
  int16_t* ids;
  int count = 0;
};

// Experts that lanes keep in registers, four neighbours at a time.
inline constexpr int kRegisterExperts = 512;

// From logits (E), E a multiple of 4 and at most kRegisterExperts; 16-byte aligned. Returns the
// largest key.
//
// The largest keys of the lanes, ranked, give a bound that at least top_k experts reach.
__device__ __forceinline__ uint32_t CollectByLogit(const Routing& routing, const float* logits,
                                                   Candidates& candidates) {
  constexpr int kBlocks = kRegisterExperts / 128;
  const int lane = threadIdx.x % 32, experts = routing.experts;
  float4 values[kBlocks];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
    values[b] =
        __ldcg(reinterpret_cast<const float4*>(logits + min(b * 128 + lane * 4, experts - 4)));
  uint32_t keys[kBlocks][4] = {};
  uint32_t largest = 0;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    if (b * 128 >= experts) break;
    if (b * 128 + lane * 4 >= experts) continue;
    keys[b][0] = OrderedKey(values[b].x), keys[b][1] = OrderedKey(values[b].y);
    keys[b][2] = OrderedKey(values[b].z), keys[b][3] = OrderedKey(values[b].w);
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = max(largest, keys[b][i]);
  }
  const int top_k = routing.top_k;
  const uint32_t bound = max(top_k <= 32 ? WarpRanked(largest, top_k - 1) : 0, 1u);
  // Of each block a byte; sums over lanes fit.
  uint32_t counts = 0;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int i = 0; i < 4; ++i) counts += static_cast<uint32_t>(keys[b][i] >= bound) << 8 * b;
  uint32_t sum = counts;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  const uint32_t totals = __shfl_sync(kAllLanes, sum, 31), before = sum - counts;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    if (b * 128 >= experts) break;
    int at = candidates.count + static_cast<int>(before >> 8 * b & 255);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (keys[b][i] < bound) continue;
      candidates.keys[at] = keys[b][i];
      candidates.ids[at++] = static_cast<int16_t>(b * 128 + lane * 4 + i);
    }
    candidates.count += static_cast<int>(totals >> 8 * b & 255);
  }
  return __reduce_max_sync(kAllLanes, largest);
}

// From values (E) in shared memory, in whose place the candidates' keys come. Returns their count.
// Lane l looks at experts l, l + 32, ...
__device__ __noinline__ inline int CollectByValue(const Routing& routing, const float* values,
                                                  uint32_t* keys, int16_t* ids) {
  const int lane = threadIdx.x % 32, experts = routing.experts, top_k = routing.top_k;
  uint32_t best = 0;
#pragma unroll 4
  for (int e = lane; e < experts; e += 32) best = max(best, OrderedKey(values[e]));
  const uint32_t bound = top_k <= 32 ? WarpRanked(best, top_k - 1) : 0;
  int count = 0;
#pragma unroll 1
  for (int first = 0; first < experts; first += 32) {
    const int e = first + lane;
    const uint32_t key = e < experts ? OrderedKey(values[e]) : 0;
    const bool reaches = e < experts && key >= bound;
    const uint32_t lanes = __ballot_sync(kAllLanes, reaches);
    // Keys come in the place of values that other lanes have read.
    __syncwarp();
    if (reaches) {
      const int at = count + __popc(lanes & ((1u << lane) - 1));
      keys[at] = key;
      ids[at] = static_cast<int16_t>(e);
    }
    count += __popc(lanes);
  }
  __syncwarp();
  return count;
}

// The weights of a token's experts, from their logits. By one warp. picked: (top_k), by rank.
__device__ __forceinline__ void WeightsOf(const Routing& routing, const Scoring& score,
                                          Picked* picked, float* weights) {
  const int lane = threadIdx.x % 32, top_k = routing.top_k;
  float sum = 0.0f;
#pragma unroll 1
  for (int j = lane; j < top_k; j += 32) {
    picked[j].logit = score(picked[j].logit);
    sum += picked[j].logit;
  }
  sum = WarpSum(sum) + 1e-20f;
  const float factor = routing.renormalize ? routing.scale / sum : routing.scale;
#pragma unroll 1
  for (int j = lane; j < top_k; j += 32) weights[picked[j].place] = picked[j].logit * factor;
  __syncwarp();
}

// The token's experts in ascending order, and with kWeights their weights. By one warp. logits:
// (E), rows aligned where E is a multiple of 4; scratch: ScratchFloats; picked: (top_k).
template <bool kWeights>
__device__ __forceinline__ void ChooseExperts(const Routing& routing, const float* logits,
                                              float* scratch, Picked* picked, int32_t* chosen,
                                              float* weights) {
  const int lane = threadIdx.x % 32, experts = routing.experts, top_k = routing.top_k;
  // Scores grow with the logits: without a bias these choose the same experts, and tell apart what
  // rounds to equal scores.
  const bool by_logit = routing.choice_bias == nullptr && routing.groups == 1;
  const bool in_registers = by_logit && (routing.renormalize || !kWeights) && experts % 4 == 0 &&
                            experts <= kRegisterExperts;
  float* const values = scratch;
  float* const rest = scratch + ScratchStride(experts);
  Candidates candidates = {reinterpret_cast<uint32_t*>(values), reinterpret_cast<int16_t*>(rest)};
  Scoring score;
  if (in_registers) {
    score = {routing.score == RouterScore::kSoftmax};
    score.largest = ValueOfKey(CollectByLogit(routing, logits, candidates));
  } else {
    LoadLogits(logits, experts, values);
    if (kWeights || !by_logit)
      score = FindScoring(routing, values, !routing.renormalize || !by_logit);
    if (!by_logit)
      ValuesOfChoice(routing, score, values, rest, reinterpret_cast<int*>(rest + routing.groups));
    candidates.count = CollectByValue(routing, values, candidates.keys, candidates.ids);
  }
  uint32_t* const keys = candidates.keys;
  const int16_t* const ids = candidates.ids;
  const int count = candidates.count;
  const int padded = (count + 3) / 4 * 4;
  if (count + lane < padded) keys[count + lane] = 0;
  __syncwarp();
  int before = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += 32) {
    const int own = first + lane;
    const uint32_t own_key = own < count ? keys[own] : 0;
    int rank = 0;
#pragma unroll 1
    for (int other = 0; other < padded; other += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(keys + other);
      rank += four.x > own_key || (four.x == own_key && other < own);
      rank += four.y > own_key || (four.y == own_key && other + 1 < own);
      rank += four.z > own_key || (four.z == own_key && other + 2 < own);
      rank += four.w > own_key || (four.w == own_key && other + 3 < own);
    }
    const bool taken = own < count && rank < top_k;
    const uint32_t lanes = __ballot_sync(kAllLanes, taken);
    if (taken) {
      const int place = before + __popc(lanes & ((1u << lane) - 1));
      chosen[place] = ids[own];
      picked[rank] = {ValueOfKey(own_key), ids[own], static_cast<int16_t>(place)};
    }
    before += __popc(lanes);
  }
  __syncwarp();
  if constexpr (kWeights) {
    if (!by_logit)
#pragma unroll 1
      for (int j = lane; j < top_k; j += 32) picked[j].logit = __ldcg(logits + picked[j].id);
    WeightsOf(routing, score, picked, weights);
  }
}

}  // namespace nibble::kernels::cuda::moe
