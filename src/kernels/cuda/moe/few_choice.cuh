// What each block of the kernels of few_tokens.h finds out by itself: the experts of all tokens, as
// groups of an expert and its tokens, ascending, the shared expert last. All blocks find the same.
#pragma once

#include "kernels/cuda/moe/choose.cuh"
#include "kernels/cuda/moe/even.cuh"
#include "kernels/cuda/moe/few_tokens.h"
#include "kernels/cuda/moe/touch_params.cuh"

namespace nibble::kernels::cuda::moe {

// An expert and its tokens: the columns of what it multiplies.
struct FewGroup {
  const std::byte* data;  // its row tile 0
  int32_t expert;         // E: the shared one
  int32_t first_row;      // of h
  int32_t rows;           // its tokens, at least one
  uint32_t tokens;        // of column c: bits 4 c .. 4 c + 3; beyond the last one the first

  __device__ __forceinline__ int TokenOf(int column) const { return tokens >> 4 * column & 15; }
};

// Where a token meets an expert.
struct FewPlace {
  int32_t row;  // of h; -1: not held here
  float weight;
};

// Shared memory of a block.
struct FewChoice {
  struct Slot {
    int32_t expert;  // INT_MAX: another slot stands for it, or nobody holds it
    uint32_t mask;   // its tokens
  };
  const std::byte** data;  // (E)
  int32_t* chosen;         // (T, top_k), ascending
  float* weights;          // (T, top_k)
  Picked* picked;          // (T, top_k)
  Slot* slots;             // (T, top_k)
  FewGroup* groups;        // (T * top_k + 1)
  FewPlace* places;        // (T, top_k)
  int32_t* row_group;      // (T, top_k + 1)
};

__host__ __device__ inline uint32_t PlaceChoice(std::byte* base, const FewParams& p,
                                                FewChoice* choice) {
  uint32_t used = 0;
  const auto take = [&](auto** pointer, int count) {
    using T = std::remove_reference_t<decltype(**pointer)>;
    *pointer = reinterpret_cast<T*>(base + used);
    used += (count * static_cast<uint32_t>(sizeof(T)) + 15) / 16 * 16;
  };
  const int slots = p.t * p.routing.top_k;
  take(&choice->data, p.routing.experts);
  take(&choice->groups, slots + 1);
  take(&choice->slots, slots);
  take(&choice->picked, slots);
  take(&choice->places, slots);
  take(&choice->chosen, slots);
  take(&choice->weights, slots);
  take(&choice->row_group, slots + p.t);
  return used;
}

// Static, so it may come before any wait.
__device__ inline void LoadTable(const FewParams& p, const std::byte* const* table,
                                 const FewChoice& choice) {
#pragma unroll 1
  for (int e = threadIdx.x; e < p.routing.experts; e += kFewThreads) choice.data[e] = table[e];
}

__device__ __forceinline__ uint32_t PackTokens(uint32_t mask) {
  uint32_t tokens = (__ffs(mask) - 1) * 0x11111111u;
#pragma unroll 1
  for (int column = 0; mask != 0; mask &= mask - 1, ++column) {
    tokens &= ~(15u << 4 * column);
    tokens |= (__ffs(mask) - 1) << 4 * column;
  }
  return tokens;
}

// Groups of all tokens; returns how many are routed. The logits are there, the table was loaded.
// kPlaces: with routing weights, places and row_group. scratch: (T) of ScratchFloats. Ends
// with a barrier.
template <bool kPlaces>
__device__ inline int FindGroups(const FewParams& p, const FewChoice& choice,
                                 const std::byte* shared_data, float* scratch) {
  const int warp = threadIdx.x / 32, experts = p.routing.experts, top_k = p.routing.top_k;
  const int slots = p.t * top_k, shared_rows = p.shared_f > 0 ? p.t : 0;
  if (warp < p.t) {
    const int first = warp * top_k;
    ChooseExperts<kPlaces>(p.routing, p.logits + int64_t{warp} * experts,
                           scratch + ScratchFloats(p.routing) * warp, choice.picked + first,
                           choice.chosen + first, choice.weights + first);
    ChooseEvenlyInstead(p.routing, warp, choice.chosen + first,
                        kPlaces ? choice.weights + first : nullptr);
  }
  __syncthreads();
  const int slot = threadIdx.x, token = slot / top_k;
  int expert = INT_MAX;
  uint32_t mask = 0;
  bool leads = false;
  if (slot < slots) {
    expert = choice.chosen[slot];
    if (choice.data[expert] == nullptr) {
      expert = INT_MAX;
    } else {
      // A token has an expert once.
#pragma unroll 1
      for (int t = 0; t < p.t; ++t) {
        bool has = false;
#pragma unroll 4
        for (int j = 0; j < top_k; ++j) has |= choice.chosen[t * top_k + j] == expert;
        mask |= static_cast<uint32_t>(has) << t;
      }
      leads = (mask & ((1u << token) - 1)) == 0;
    }
    choice.slots[slot] = {leads ? expert : INT_MAX, mask};
  }
  const int groups = __syncthreads_count(leads);
  if (slot < slots) {
    int group = 0, first_row = shared_rows;
#pragma unroll 4
    for (int other = 0; other < slots; ++other) {
      const FewChoice::Slot leader = choice.slots[other];
      if (leader.expert < expert) ++group, first_row += __popc(leader.mask);
    }
    if (leads)
      choice.groups[group] = {choice.data[expert], expert, first_row, __popc(mask),
                              PackTokens(mask)};
    if constexpr (kPlaces) {
      const int row = first_row + __popc(mask & ((1u << token) - 1));
      const bool held = expert != INT_MAX;
      choice.places[slot] = {held ? row : -1, choice.weights[slot]};
      if (held) choice.row_group[row] = group;
    }
  } else if (slot - kFewSlots < shared_rows && slot >= kFewSlots) {
    if (slot == kFewSlots)
      choice.groups[groups] = {shared_data, experts, 0, p.t, PackTokens((1u << p.t) - 1)};
    if constexpr (kPlaces) choice.row_group[slot - kFewSlots] = groups;
  }
  __syncthreads();
  return groups;
}

}  // namespace nibble::kernels::cuda::moe
