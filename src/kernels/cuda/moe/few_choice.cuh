// What each block of the kernels of few_tokens.h finds out by itself: the rows of all experts, each
// a token of one, as groups of up to kFewRows rows of an expert; experts ascend, the shared one
// comes last. All blocks find the same.
#pragma once

#include "kernels/cuda/moe/choose.cuh"
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
  uint32_t* warp_sums;        // (kFewWarps)
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
  take(&choice->warp_sums, kFewWarps);
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
struct OwnExperts {
  static constexpr int kMost = kFewExperts / kFewThreads;
  int first, count;
  const std::byte* data[kMost];

  // table: static, so this may come before any wait.
  __device__ __forceinline__ OwnExperts(const std::byte* const* table, int experts) {
    const int each = experts > kFewThreads ? kMost : 1;
    first = static_cast<int>(threadIdx.x) * each;
    count = max(0, min(each, experts - first));
#pragma unroll
    for (int i = 0; i < kMost; ++i) data[i] = i < count ? table[first + i] : nullptr;
  }
};

// Before the wait; what follows has a barrier in between.
__device__ __forceinline__ void ClearMasks(const FewParams& p, const FewChoice& choice) {
#pragma unroll 1
  for (int e = threadIdx.x; e < p.routing.experts; e += kFewThreads) choice.masks[e] = 0;
}

// choice.chosen, and with kWeights its weights. Ends with a barrier.
template <bool kWeights>
__device__ __forceinline__ void LoadChosen(const FewParams& p, const FewChoice& choice) {
#pragma unroll 1
  for (int i = threadIdx.x; i < p.t * p.routing.top_k; i += kFewThreads) {
    choice.chosen[i] = __ldcg(p.chosen + i);
    if constexpr (kWeights) choice.weights[i] = __ldcg(p.chosen_weight + i);
  }
  __syncthreads();
}

// The sum of the values of threads before this one; *total: of all.
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
  for (int w = 0; w < kFewWarps; ++w) {
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
template <bool kPlaces>
__device__ __forceinline__ FewCounts FindGroups(const FewParams& p, const FewChoice& choice,
                                                const OwnExperts& own,
                                                const std::byte* shared_data) {
  const int top_k = p.routing.top_k, slots = p.t * top_k, group_rows = GroupRows(p);
  auto* const halves = reinterpret_cast<uint32_t*>(choice.masks);
#pragma unroll 1
  for (int i = threadIdx.x; i < slots; i += kFewThreads) {
    const int token = i / top_k;
    atomicOr(halves + 2 * choice.chosen[i] + token / 32, 1u << token % 32);
  }
  __syncthreads();
  unsigned long long masks[OwnExperts::kMost];
  uint32_t counts = 0;  // rows, and from bit 16 on groups
#pragma unroll
  for (int i = 0; i < OwnExperts::kMost; ++i) {
    masks[i] = own.data[i] != nullptr ? choice.masks[own.first + i] : 0;
    const uint32_t rows = __popcll(masks[i]);
    counts += rows | (rows + group_rows - 1) / group_rows << 16;
  }
  uint32_t total;
  uint32_t before = ScanThreads(counts, choice.warp_sums, &total);
#pragma unroll
  for (int i = 0; i < OwnExperts::kMost; ++i) {
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
    for (int i = threadIdx.x; i < slots; i += kFewThreads) {
      const int expert = choice.chosen[i], first = choice.first_rows[expert];
      const unsigned long long earlier = choice.masks[expert] & ((1ull << i / top_k) - 1);
      choice.rows[i] = static_cast<int16_t>(first < 0 ? -1 : first + __popcll(earlier));
    }
  }
  __syncthreads();
  return found;
}

}  // namespace nibble::kernels::cuda::moe
