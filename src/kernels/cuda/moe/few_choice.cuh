// What each block of the kernels of few_tokens.h finds out by itself: the rows of all experts, each
// a token of one, as groups of up to kFewRows rows of an expert; experts ascend, the shared one
// comes last. All blocks find the same.
#pragma once

#include "kernels/cuda/moe/choose.cuh"
#include "kernels/cuda/moe/even.cuh"
#include "kernels/cuda/moe/few_tokens.h"

namespace nibble::kernels::cuda::moe {

// Rows of h that multiply by the same expert.
struct FewGroup {
  const std::byte* data;  // the expert's row tile 0
  int16_t expert;         // E: the shared one
  int16_t first_row;
  int32_t rows;
};

// The most rows of a group, for which shared memory is sized: what few experts exceed where tokens
// hit them at random. Those that do meet their weights more than once.
__host__ __device__ inline int GroupRows(const FewParams& p) {
  const int slots = p.t * p.routing.top_k, experts = p.routing.experts;
  const int rows = 20 * slots <= 11 * experts   ? 2
                   : 20 * slots <= 21 * experts ? 3
                   : 20 * slots <= 32 * experts ? 4
                                                : kFewRows;
  return rows < p.t ? rows : p.t;
}

struct FewCounts {
  int routed_groups;
  int groups;
};

// Shared memory of a block.
struct FewChoice {
  unsigned long long* masks;  // (E): the expert's tokens
  FewGroup* groups;           // (MaxFewGroups)
  uint32_t* warp_sums;        // (kMoreWarps)
  int32_t* chosen;            // (T, top_k), ascending
  uint8_t* row_token;         // (T * (top_k + 1))
  // Of FewDown:
  float* weights;         // (T, top_k)
  int16_t* rows;          // (T, top_k): where the token meets the expert; -1: not held here
  float* shared_weights;  // (T)
  int16_t* first_rows;    // (E)
};

__host__ __device__ inline int MaxFewGroups(const FewParams& p) {
  const int rows = GroupRows(p), slots = p.t * p.routing.top_k;
  const int most = p.routing.experts + slots / rows;
  return (slots < most ? slots : most) + (p.t + rows - 1) / rows;
}

__host__ __device__ inline uint32_t PlaceChoice(std::byte* base, const FewParams& p, bool places,
                                                FewChoice* choice) {
  uint32_t used = 0;
  const auto take = [&](auto** pointer, int count) {
    using T = std::remove_reference_t<decltype(**pointer)>;
    *pointer = reinterpret_cast<T*>(base + used);
    used += (count * static_cast<uint32_t>(sizeof(T)) + 15) / 16 * 16;
  };
  const int slots = p.t * p.routing.top_k;
  take(&choice->masks, p.routing.experts);
  take(&choice->groups, MaxFewGroups(p));
  take(&choice->warp_sums, kMoreWarps);
  take(&choice->chosen, slots);
  take(&choice->row_token, slots + p.t);
  if (places) {
    take(&choice->weights, slots);
    take(&choice->rows, slots);
    take(&choice->shared_weights, p.t);
    take(&choice->first_rows, p.routing.experts);
  }
  return used;
}

// The experts that a thread groups: neighbours, so that a scan over the threads ascends.
template <int kThreads>
struct OwnExperts {
  static constexpr int kMost = (kFewExperts + kThreads - 1) / kThreads;
  int first, count;
  const std::byte* data[kMost];

  // table: static, so this may come before any wait.
  __device__ __forceinline__ OwnExperts(const std::byte* const* table, int experts) {
    const int each = experts > kThreads ? kMost : 1;
    first = static_cast<int>(threadIdx.x) * each;
    count = max(0, min(each, experts - first));
#pragma unroll
    for (int i = 0; i < kMost; ++i) data[i] = i < count ? table[first + i] : nullptr;
  }
};

// Before the wait; what follows has a barrier in between.
template <int kThreads>
__device__ __forceinline__ void ClearMasks(const FewParams& p, const FewChoice& choice) {
#pragma unroll 1
  for (int e = threadIdx.x; e < p.routing.experts; e += kThreads) choice.masks[e] = 0;
}

// Up to so many experts are compared with each other, a thread for each.
inline constexpr int kComparedFew = 128;
__host__ __device__ inline bool ComparesAll(const Routing& routing) {
  return routing.experts <= kComparedFew && routing.choice_bias == nullptr && routing.groups == 1 &&
         routing.renormalize;
}

// Floats of scratch memory that Choose takes, where it is called.
__host__ __device__ inline int ChooseScratch(const FewParams& p) {
  if (p.t > kBesideTokens) return 0;
  const int picked = p.t * p.routing.top_k * static_cast<int>(sizeof(Picked) / sizeof(float));
  return (ComparesAll(p.routing) ? 32 * kFewWarps : p.t * ScratchFloats(p.routing)) + picked;
}

// As ChooseExperts does, where ComparesAll. picked: (T, top_k).
template <int kThreads>
__device__ __forceinline__ void CompareExperts(const FewParams& p, const FewChoice& choice,
                                               uint32_t* keys, Picked* picked) {
  constexpr int kTokens = kThreads / kComparedFew;  // at a time
  constexpr int kWarps = kComparedFew / 32;         // of a token
  static_assert(kThreads % kComparedFew == 0);
  const int top_k = p.routing.top_k, experts = p.routing.experts;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int of_tokens = threadIdx.x / kComparedFew, e = threadIdx.x % kComparedFew;
  const auto* const others = reinterpret_cast<const uint4*>(keys + of_tokens * kComparedFew);
#pragma unroll 1
  for (int first = 0; first < p.t; first += kTokens) {
    const int token = first + of_tokens;
    const bool real = token < p.t && e < experts;
    const float logit = real ? __ldcg(p.logits + token * experts + e) : 0.0f;
    const uint32_t key = real ? OrderedKey(logit) : 0;
    keys[threadIdx.x] = key;
    __syncthreads();
    // How many are better; of equal ones those before.
    int rank = 0;
#pragma unroll 8
    for (int i = 0; i < kComparedFew / 4; ++i) {
      const uint4 four = others[i];
      const uint32_t bound = i < e / 4 ? key - 1 : key;
      rank += (four.x > bound) + (four.y > bound) + (four.z > bound) + (four.w > bound);
    }
    const uint4 own = others[e / 4];
    rank += (own.x == key && e % 4 > 0) + (own.y == key && e % 4 > 1) + (own.z == key && e % 4 > 2);
    const bool taken = real && rank < top_k;
    const uint32_t lanes = __ballot_sync(kAllLanes, taken);
    if (lane == 0) choice.warp_sums[warp] = __popc(lanes);
    __syncthreads();
    if (taken) {
      int place = __popc(lanes & ((1u << lane) - 1));
#pragma unroll
      for (int w = 0; w + 1 < kWarps; ++w)
        if (w < warp % kWarps) place += choice.warp_sums[warp / kWarps * kWarps + w];
      choice.chosen[token * top_k + place] = e;
      picked[token * top_k + rank] = {logit, static_cast<int16_t>(e), static_cast<int16_t>(place)};
    }
  }
  __syncthreads();
}

// choice.chosen, and with kWeights its weights, from logits. scratch: ChooseScratch. Ends with a
// barrier.
template <int kThreads, bool kWeights>
__device__ __forceinline__ void Choose(const FewParams& p, const FewChoice& choice,
                                       float* scratch) {
  static_assert(kBesideTokens <= kThreads / 32);
  const int top_k = p.routing.top_k, token = threadIdx.x / 32;
  int32_t* const chosen = choice.chosen + token * top_k;
  float* const weights = kWeights ? choice.weights + token * top_k : nullptr;
  if (ComparesAll(p.routing)) {
    auto* const picked = reinterpret_cast<Picked*>(scratch + kThreads);
    CompareExperts<kThreads>(p, choice, reinterpret_cast<uint32_t*>(scratch), picked);
    if (kWeights && token < p.t) {
      Picked* const own = picked + token * top_k;
      Scoring score = {p.routing.score == RouterScore::kSoftmax};
      score.largest = own[0].logit;
      WeightsOf(p.routing, score, own, weights);
    }
  } else if (token < p.t) {
    const int floats = ScratchFloats(p.routing);
    auto* const picked = reinterpret_cast<Picked*>(scratch + p.t * floats) + token * top_k;
    ChooseExperts<kWeights>(p.routing, p.logits + token * p.routing.experts,
                            scratch + token * floats, picked, chosen, weights);
  }
  if (token < p.t) ChooseEvenlyInstead(p.routing, token, chosen, weights);
  __syncthreads();
}

// choice.chosen, and with kWeights its weights. Ends with a barrier.
template <int kThreads, bool kWeights>
__device__ __forceinline__ void LoadChosen(const FewParams& p, const FewChoice& choice) {
#pragma unroll 1
  for (int i = threadIdx.x; i < p.t * p.routing.top_k; i += kThreads) {
    choice.chosen[i] = __ldcg(p.chosen + i);
    if constexpr (kWeights) choice.weights[i] = __ldcg(p.chosen_weight + i);
  }
  __syncthreads();
}

// The sum of the values of threads before this one; *total: of all.
template <int kThreads>
__device__ __forceinline__ uint32_t ScanThreads(uint32_t value, uint32_t* warp_sums,
                                                uint32_t* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  uint32_t before = 0;
  *total = 0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    const uint32_t of_warp = warp_sums[w];
    if (w < warp) before += of_warp;
    *total += of_warp;
  }
  return before + sum - value;
}

// Rows and groups of an expert, first of them `row` and `group`.
__device__ __forceinline__ void WriteExpert(const FewChoice& choice, int group_rows,
                                            const std::byte* data, int expert,
                                            unsigned long long mask, int row, int group) {
  const int end = row + __popcll(mask);
#pragma unroll 1
  for (int first = row; first < end; first += group_rows, ++group)
    choice.groups[group] = {data, static_cast<int16_t>(expert), static_cast<int16_t>(first),
                            min(group_rows, end - first)};
#pragma unroll 1
  for (; mask != 0; mask &= mask - 1)
    choice.row_token[row++] = static_cast<uint8_t>(__ffsll(static_cast<long long>(mask)) - 1);
}

// From choice.chosen to rows and groups; masks are clear. kPlaces: also where tokens meet experts.
// Ends with a barrier.
template <int kThreads, bool kPlaces>
__device__ __forceinline__ FewCounts FindGroups(const FewParams& p, const FewChoice& choice,
                                                const OwnExperts<kThreads>& own,
                                                const std::byte* shared_data) {
  const int top_k = p.routing.top_k, slots = p.t * top_k, group_rows = GroupRows(p);
  auto* const halves = reinterpret_cast<uint32_t*>(choice.masks);
#pragma unroll 1
  for (int i = threadIdx.x; i < slots; i += kThreads) {
    const int token = i / top_k;
    atomicOr(halves + 2 * choice.chosen[i] + token / 32, 1u << token % 32);
  }
  __syncthreads();
  constexpr int kMost = OwnExperts<kThreads>::kMost;
  unsigned long long masks[kMost];
  uint32_t counts = 0;  // rows, and from bit 16 on groups
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    masks[i] = own.data[i] != nullptr ? choice.masks[own.first + i] : 0;
    const uint32_t rows = __popcll(masks[i]);
    counts += rows | (rows + group_rows - 1) / group_rows << 16;
  }
  uint32_t total;
  uint32_t before = ScanThreads<kThreads>(counts, choice.warp_sums, &total);
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i >= own.count) break;
    const uint32_t rows = __popcll(masks[i]);
    const int first_row = static_cast<int>(before & 0xFFFF);
    WriteExpert(choice, group_rows, own.data[i], own.first + i, masks[i], first_row, before >> 16);
    if constexpr (kPlaces)
      choice.first_rows[own.first + i] =
          static_cast<int16_t>(own.data[i] != nullptr ? first_row : -1);
    before += rows | (rows + group_rows - 1) / group_rows << 16;
  }
  FewCounts found = {static_cast<int>(total >> 16), static_cast<int>(total >> 16)};
  if (p.shared_f > 0) {
    found.groups += (p.t + group_rows - 1) / group_rows;
    const int token = threadIdx.x, first_row = static_cast<int>(total & 0xFFFF);
    if (token < p.t) {
      choice.row_token[first_row + token] = static_cast<uint8_t>(token);
      if (token % group_rows == 0)
        choice.groups[found.routed_groups + token / group_rows] = {
            shared_data, static_cast<int16_t>(p.routing.experts),
            static_cast<int16_t>(first_row + token), min(group_rows, p.t - token)};
    }
  }
  if constexpr (kPlaces) {
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < slots; i += kThreads) {
      const int expert = choice.chosen[i], first = choice.first_rows[expert];
      const unsigned long long earlier = choice.masks[expert] & ((1ull << i / top_k) - 1);
      choice.rows[i] = static_cast<int16_t>(first < 0 ? -1 : first + __popcll(earlier));
    }
  }
  __syncthreads();
  return found;
}

}  // namespace nibble::kernels::cuda::moe
