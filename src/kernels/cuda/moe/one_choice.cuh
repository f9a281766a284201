// What each block of the kernels of one_token.h finds out by itself: the experts of one token. A
// thread looks at one expert; all blocks find the same.
#pragma once

#include "kernels/cuda/moe/choose.cuh"
#include "kernels/cuda/moe/one_token.h"
#include "kernels/cuda/touch_params.cuh"
#include "kernels/even_routing.h"

namespace nibble::kernels::cuda::moe {

// Shared memory of a choice.
struct OneChoice {
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
  uint32_t maxima[32];       // of groups of neighbouring experts
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
__device__ __forceinline__ uint32_t KeyOfChoice(const Routing& routing, float logit) {
  if (routing.choice_bias == nullptr) return OrderedKey(logit);
  return OrderedKey(Sigmoid(logit) + routing.choice_bias[threadIdx.x]);
}

// The rank of the thread's expert where benchmarks choose evenly (kernels/even_routing.h); top_k:
// it is not chosen.
__device__ __forceinline__ int EvenRank(const Routing& routing) {
  int rank = routing.top_k;
  if (routing.even_keys == nullptr) return rank;
  const EvenChoice even =
      ChooseEvenly(__ldcg(routing.even_keys), routing.even_salt, routing.experts, routing.top_k);
#pragma unroll 1
  for (int i = 0; i < routing.top_k; ++i)
    if (even.expert(i, routing.experts) == static_cast<int>(threadIdx.x)) rank = i;
  return rank;
}

// Fills choice.ranks but for the shared expert's; ends with a barrier. logit, data: of the thread's
// expert; even_rank: its EvenRank, which replaces its own where benchmarks choose evenly.
//
// The largest keys of 32 groups, ranked, give a bound that at least top_k experts reach and hardly
// more; these few are then ranked against each other.
__device__ __forceinline__ void Choose(const Routing& routing, float logit, const std::byte* data,
                                       int even_rank, OneChoice& choice) {
  const int e = static_cast<int>(threadIdx.x), lane = e % 32;
  const bool real = e < routing.experts;
  const uint32_t key = real ? KeyOfChoice(routing, logit) : 0;
  // Experts of a group, a power of two.
  const int shift = routing.experts <= 32 ? 0 : 32 - __clz((routing.experts - 1) >> 5);
  uint32_t largest = key;
#pragma unroll 1
  for (int other = 1; other < 1 << shift; other *= 2)
    largest = max(largest, __shfl_xor_sync(kAllLanes, largest, other));
  if (e >> shift < 32) choice.maxima[e >> shift] = largest;
  if (e == 0) choice.candidate_count = 0;
  __syncthreads();
  bool reaches = false;
  if (e - lane < routing.experts) {
    const uint32_t own = choice.maxima[lane];
    int larger = 0;
#pragma unroll 4
    for (int i = 0; i < 32; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(choice.maxima + i);
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
