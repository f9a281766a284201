// What each block of the kernels of one_token.h finds out by itself: the experts of one token. All
// blocks find the same. Up to 128 experts all are compared with all, by four threads for each; of
// more, a thread looks at one.
#pragma once

#include "kernels/cuda/moe/choose.cuh"
#include "kernels/cuda/moe/one_token.h"
#include "kernels/cuda/ptx/copy_parts.cuh"
#include "kernels/even_routing.h"

namespace nibble::kernels::cuda::moe {

// What the choice needs of FewParams. Kernels of one token take no more than they read: parameters
// come from a cold cache of constants, line by line.
struct OneRouting {
  const float* logits = nullptr;        // (E)
  const float* choice_bias = nullptr;   // (E) or null
  const uint32_t* even_keys = nullptr;  // or null
  uint32_t even_salt = 0;
  int32_t experts = 0;
  int32_t top_k = 0;
};

inline OneRouting OneRoutingOf(const FewParams& p) {
  return {p.logits,          p.routing.choice_bias, p.routing.even_keys, p.routing.even_salt,
          p.routing.experts, p.routing.top_k};
}

inline constexpr int kComparedExperts = 128;
inline constexpr int kCompareParts = kOneThreads / kComparedExperts;
inline constexpr int kPartExperts = kComparedExperts / kCompareParts;

// The expert that this thread looks at, which may not be there.
__device__ __forceinline__ int ExpertOfThread(const OneRouting& routing) {
  const int thread = static_cast<int>(threadIdx.x);
  return routing.experts <= kComparedExperts ? thread / kCompareParts : thread;
}

// Shared memory of a choice.
struct OneChoice {
  // Floats from one part to the next, without bank conflicts.
  static constexpr int kPartStride = kPartExperts + 4;

  struct Candidate {
    uint32_t key;
    uint32_t expert;
  };
  // Of the chosen experts, by rank: the largest value first.
  struct Rank {
    const std::byte* data;  // of the phase's weight, row tile 0
    int32_t expert;
    float logit;
  };
  Rank ranks[kOneTopK + 1];  // the shared expert last
  // Of all experts, in parts, or of groups of neighbouring ones.
  alignas(16) uint32_t keys[kCompareParts * kPartStride];
  int32_t candidate_count;

  // (E)
  __device__ __forceinline__ Candidate* candidates() {
    return reinterpret_cast<Candidate*>(this + 1);
  }
  static uint32_t Bytes(int experts) {
    return static_cast<uint32_t>(sizeof(OneChoice) + experts * sizeof(Candidate));
  }
};

// What the choice goes by: larger for better experts. Scores grow with the logits.
__device__ __forceinline__ uint32_t KeyOfChoice(const OneRouting& routing, int expert,
                                                float logit) {
  if (routing.choice_bias == nullptr) return OrderedKey(logit);
  return OrderedKey(Sigmoid(logit) + routing.choice_bias[expert]);
}

// A bias into shared memory; none is 0.
__device__ __forceinline__ void CopyBias(float* to, const float* bias, int n) {
  if (bias == nullptr) {
    *to = 0.0f;
  } else {
    ptx::CopyAsync4(to, bias + n);
  }
}

// The rank of the thread's expert where benchmarks choose evenly (kernels/even_routing.h); top_k:
// it is not chosen.
__device__ __forceinline__ int EvenRank(const OneRouting& routing, int expert) {
  int rank = routing.top_k;
  if (routing.even_keys == nullptr) return rank;
  const EvenChoice even =
      ChooseEvenly(__ldcg(routing.even_keys), routing.even_salt, routing.experts, routing.top_k);
#pragma unroll 1
  for (int i = 0; i < routing.top_k; ++i)
    if (even.expert(i, routing.experts) == expert) rank = i;
  return rank;
}

// Of up to kComparedExperts: an expert's rank is how many others are better.
__device__ __forceinline__ void ChooseOfCompared(const OneRouting& routing, float logit,
                                                 const std::byte* data, int even_rank,
                                                 OneChoice& choice) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int expert = thread / kCompareParts, part = thread % kCompareParts;
  const bool real = expert < routing.experts;
  const uint32_t key = real ? KeyOfChoice(routing, expert, logit) : 0;
  if (part == 0)
    choice.keys[expert / kPartExperts * OneChoice::kPartStride + expert % kPartExperts] = key;
  if (thread < routing.top_k) choice.ranks[thread].data = nullptr;
  __syncthreads();
  const auto* const others =
      reinterpret_cast<const uint4*>(choice.keys + part * OneChoice::kPartStride);
  const auto count = [&](auto is_better) {
    int better = 0;
#pragma unroll
    for (int i = 0; i < kPartExperts / 4; ++i) {
      const uint4 four = others[i];
      const int first = part * kPartExperts + 4 * i;
      better += is_better(four.x, first) + is_better(four.y, first + 1) +
                is_better(four.z, first + 2) + is_better(four.w, first + 3);
    }
#pragma unroll
    for (int other = 1; other < kCompareParts; other *= 2)
      better += __shfl_xor_sync(kAllLanes, better, other);
    return better;
  };
  int rank = count([&](uint32_t other, int) { return other > key; });
  if (routing.even_keys != nullptr) rank = even_rank;
  const auto write = [&] {
    if (part == 0 && real && rank < routing.top_k) choice.ranks[rank] = {data, expert, logit};
    __syncthreads();
  };
  write();
  // Equal ones have left a place free: the smaller id is the better one.
  if (!__any_sync(kAllLanes, lane < routing.top_k && choice.ranks[lane].data == nullptr)) return;
  rank += count([&](uint32_t other, int id) { return other == key && id < expert; });
  __syncthreads();
  write();
}

// Fills choice.ranks but for the shared expert's; ends with a barrier. logit, data: of the thread's
// expert; even_rank: its EvenRank, which replaces its own where benchmarks choose evenly.
//
// More than kComparedExperts: the largest keys of 32 groups, ranked, give a bound that at least
// top_k experts reach and hardly more; these few are then ranked against each other.
__device__ __forceinline__ void Choose(const OneRouting& routing, float logit,
                                       const std::byte* data, int even_rank, OneChoice& choice) {
  if (routing.experts <= kComparedExperts)
    return ChooseOfCompared(routing, logit, data, even_rank, choice);
  const int e = static_cast<int>(threadIdx.x), lane = e % 32;
  const bool real = e < routing.experts;
  const uint32_t key = real ? KeyOfChoice(routing, e, logit) : 0;
  // Experts of a group, a power of two.
  const int shift = 32 - __clz((routing.experts - 1) >> 5);
  uint32_t largest = key;
#pragma unroll 1
  for (int other = 1; other < 1 << shift; other *= 2)
    largest = max(largest, __shfl_xor_sync(kAllLanes, largest, other));
  if (e >> shift < 32) choice.keys[e >> shift] = largest;
  if (e == 0) choice.candidate_count = 0;
  __syncthreads();
  bool reaches = false;
  if (e - lane < routing.experts) {
    const uint32_t own = choice.keys[lane];
    int larger = 0;
#pragma unroll 4
    for (int i = 0; i < 32; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(choice.keys + i);
      larger += (four.x > own) + (four.y > own) + (four.z > own) + (four.w > own);
    }
    const uint32_t bound = __reduce_min_sync(kAllLanes, larger < routing.top_k ? own : 0xFFFFFFFFu);
    reaches = real && key >= bound;
    const uint32_t lanes = __ballot_sync(kAllLanes, reaches);
    int first = 0;
    if (lane == 0 && lanes != 0) first = atomicAdd(&choice.candidate_count, __popc(lanes));
    first = __shfl_sync(kAllLanes, first, 0);
    if (reaches)
      choice.candidates()[first + __popc(lanes & ((1u << lane) - 1))] = {key,
                                                                         static_cast<uint32_t>(e)};
  }
  __syncthreads();
  int rank = routing.top_k;
  if (reaches) {
    const int count = choice.candidate_count;
    rank = 0;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const OneChoice::Candidate other = choice.candidates()[i];
      rank += other.key > key;
      if (other.key == key) rank += other.expert < static_cast<uint32_t>(e);
    }
  }
  if (routing.even_keys != nullptr) rank = even_rank;
  if (rank < routing.top_k) choice.ranks[rank] = {data, e, logit};
  __syncthreads();
}

}  // namespace nibble::kernels::cuda::moe
