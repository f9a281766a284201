// The lists of Route, for blocks of any number of warps, by counting. A block's tokens are bits of
// one mask per expert, so that a row's place is a population count, whatever the order in which
// threads run.
#pragma once

#include "kernels/cuda/moe/choose.cuh"
#include "kernels/cuda/moe/even.cuh"
#include "kernels/cuda/moe/route.h"

namespace nibble::kernels::cuda::moe {

struct Pair {
  int32_t rows;
  int32_t groups;
};

__device__ __forceinline__ Pair operator+(Pair a, Pair b) {
  return {a.rows + b.rows, a.groups + b.groups};
}

// Exclusive over the block's threads; *total: of all. Ends with a barrier.
__device__ inline Pair BlockScan(Pair value, Pair* warp_sums, Pair* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Pair sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const Pair other = {__shfl_up_sync(kAllLanes, sum.rows, step),
                        __shfl_up_sync(kAllLanes, sum.groups, step)};
    if (lane >= step) sum = sum + other;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  Pair before = {0, 0};
  *total = {0, 0};
  for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) {
    if (w < warp) before = before + warp_sums[w];
    *total = *total + warp_sums[w];
  }
  __syncthreads();
  return {before.rows + sum.rows - value.rows, before.groups + sum.groups - value.groups};
}

// Shared memory of a block.
struct Block {
  unsigned long long* masks;  // (E): which of the block's tokens have the expert
  uint8_t* held;              // (E)
  int32_t* rows;              // (E): of the step
  int32_t* rows_before;       // (E): of the blocks before
  int32_t* first_row;         // (E)
  int32_t* first_group;       // (E)
  int32_t* group_expert;      // (groups of routed experts, at most)
  int32_t* chosen;            // (kTokensOfBlock, top_k)
  float* weights;             // (kTokensOfBlock, top_k)
  Picked* picked;             // (warps, top_k)
  Pair* warp_sums;            // (32)
  float* scratch;             // (warps with a token) of ScratchFloats
};

__host__ __device__ inline int64_t MaxRoutedGroups(const RouteParams& p) {
  const int64_t rows = p.t * p.routing.top_k, most = p.routing.experts + rows / p.group_rows;
  return rows < most ? rows : most;
}

__host__ __device__ inline size_t Carve(std::byte* base, const RouteParams& p, int warps,
                                        Block* block) {
  size_t used = 0;
  const auto take = [&](auto** pointer, size_t count) {
    using T = std::remove_reference_t<decltype(**pointer)>;
    *pointer = reinterpret_cast<T*>(base + used);
    used += (count * sizeof(T) + 15) / 16 * 16;
  };
  const int experts = p.routing.experts, top_k = p.routing.top_k;
  const int tokens = p.t < kTokensOfBlock ? static_cast<int>(p.t) : kTokensOfBlock;
  take(&block->masks, experts);
  take(&block->held, experts);
  take(&block->rows, experts);
  take(&block->rows_before, experts);
  take(&block->first_row, experts);
  take(&block->first_group, experts);
  take(&block->group_expert, MaxRoutedGroups(p));
  take(&block->chosen, tokens * top_k);
  take(&block->weights, tokens * top_k);
  take(&block->picked, warps * top_k);
  take(&block->warp_sums, 32);
  take(&block->scratch, ScratchFloats(p.routing) * (warps < tokens ? warps : tokens));
  return used;
}

// The table is static, so all of this may come before the wait.
__device__ inline void Prepare(const RouteParams& p, const Block& block) {
  for (int e = threadIdx.x; e < p.routing.experts; e += blockDim.x) {
    block.masks[e] = 0;
    block.rows[e] = 0;
    block.rows_before[e] = 0;
    block.held[e] = p.held[e];
  }
  if (blockIdx.x != 0) return;
  // The chosen ones are copied later.
  const auto* bytes = reinterpret_cast<const char*>(p.experts);
  const int size = p.routing.experts * static_cast<int>(sizeof(Expert));
  for (int at = threadIdx.x * 128; at < size; at += blockDim.x * 128)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(bytes + at));
}

// The block's tokens as bits of its experts' masks, which are clear.
__device__ inline void FillMasks(const RouteParams& p, const Block& block, int tokens) {
  const int slots = tokens * p.routing.top_k;
  for (int i = threadIdx.x; i < slots; i += blockDim.x) {
    const int32_t e = block.chosen[i];
    if (block.held[e]) atomicOr(&block.masks[e], 1ull << (i / p.routing.top_k));
  }
}

__device__ __forceinline__ int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// A thread per 16 bytes.
__device__ inline void WriteGroups(const RouteParams& p, const Block& block, Pair routed,
                                   int shared_rows) {
  constexpr int kVectors = sizeof(Group) / 16;
  static_assert(sizeof(Expert) == (kVectors - 1) * 16);
  const int groups = routed.groups + CeilDiv(shared_rows, p.group_rows);
  for (int i = threadIdx.x; i < groups * kVectors; i += blockDim.x) {
    const int g = i / kVectors, vector = i % kVectors;
    const bool is_shared = g >= routed.groups;
    const int e = is_shared ? p.routing.experts : block.group_expert[g];
    uint4 value;
    if (vector < kVectors - 1) {
      const Expert* expert = is_shared ? &p.shared : p.experts + e;
      value = reinterpret_cast<const uint4*>(expert)[vector];
    } else {
      const int done = (g - (is_shared ? routed.groups : block.first_group[e])) * p.group_rows;
      const int rows = is_shared ? shared_rows : block.rows[e];
      value.x = e;
      value.y = is_shared ? p.shared_f : p.f;
      value.z = (is_shared ? routed.rows : block.first_row[e]) + done;
      value.w = min(p.group_rows, rows - done);
    }
    reinterpret_cast<uint4*>(p.lists.groups + g)[vector] = value;
  }
}

// Which part of a phase's items each of its blocks takes. first_thread: whom to begin with.
__device__ inline void WriteShares(const Split& split, int routed_groups, int groups,
                                   int first_thread, Share* shares) {
  const unsigned routed = routed_groups * split.routed_tiles;
  const unsigned routed_cost = routed * split.routed_cost;
  const unsigned cost =
      routed_cost + (groups - routed_groups) * split.shared_tiles * split.shared_cost;
  const unsigned of_block = cost / split.blocks, rest = cost % split.blocks;
  const auto item_at = [&](unsigned block) {
    const unsigned border = of_block * block + min(block, rest);
    if (border < routed_cost) return (border + split.routed_cost - 1) / split.routed_cost;
    return routed + (border - routed_cost + split.shared_cost - 1) / split.shared_cost;
  };
  const auto group_at = [&](unsigned item, int* tile) -> int {
    const bool is_routed = item < routed;
    const unsigned from = is_routed ? 0 : routed;
    const unsigned tiles = is_routed ? split.routed_tiles : split.shared_tiles;
    *tile = (item - from) % tiles;
    return (is_routed ? 0 : routed_groups) + (item - from) / tiles;
  };
  for (int b = (threadIdx.x + first_thread) % blockDim.x; b < split.blocks; b += blockDim.x) {
    const unsigned first = item_at(b), end = item_at(b + 1);
    Share share;
    if (first < end) {
      int tile = 0, ignored = 0;
      share.group = group_at(first, &tile);
      share.tile = static_cast<int16_t>(tile);
      share.items = end - first;
      share.groups = static_cast<int16_t>(group_at(end - 1, &ignored) + 1 - share.group);
      share.routed_groups =
          max(0, min(static_cast<int>(share.groups), routed_groups - share.group));
    }
    shares[b] = share;
  }
}

// The block's rows and places; block 0 also writes what there is once. Masks, rows and rows_before
// are filled.
__device__ inline void WriteLists(const RouteParams& p, const Block& block, int index, int tokens) {
  const int experts = p.routing.experts, top_k = p.routing.top_k;
  Pair base = {0, 0};
  for (int from = 0; from < experts; from += blockDim.x) {
    const int e = from + threadIdx.x;
    const int rows = e < experts ? block.rows[e] : 0;
    const int groups = CeilDiv(rows, p.group_rows);
    Pair total;
    const Pair before = base + BlockScan({rows, groups}, block.warp_sums, &total);
    base = base + total;
    if (e >= experts) continue;
    block.first_row[e] = before.rows;
    block.first_group[e] = before.groups;
    for (int g = 0; g < groups; ++g) block.group_expert[before.groups + g] = e;
    if (index == 0) p.lists.first_row[e] = before.rows;
  }
  __syncthreads();
  const bool shared = p.shared.gate.data != nullptr;
  const int shared_rows = shared ? static_cast<int>(p.t) : 0;
  if (index == 0) {
    WriteGroups(p, block, base, shared_rows);
    const int all_groups = base.groups + CeilDiv(shared_rows, p.group_rows);
    WriteShares(p.gate_up, base.groups, all_groups, 0, p.lists.gate_up_shares);
    WriteShares(p.down, base.groups, all_groups, blockDim.x / 2, p.lists.down_shares);
  }
  const int first_token = index * kTokensOfBlock;
  for (int i = threadIdx.x; i < tokens * top_k; i += blockDim.x) {
    const int token = i / top_k;
    const int32_t e = block.chosen[i];
    Place place = {.group_column = -1, .row = -1};
    if (block.held[e]) {
      const int rank = block.rows_before[e] + __popcll(block.masks[e] & ((1ull << token) - 1));
      const int row = block.first_row[e] + rank;
      place.row = row;
      p.lists.row_token[row] = first_token + token;
      p.lists.row_weight[row] = block.weights[i];
      place.group_column =
          (block.first_group[e] + rank / p.group_rows) * kColumnsOfGroup + rank % p.group_rows;
      place.weight = p.weight_on_input ? 1.0f : block.weights[i];
    }
    p.lists.places[(first_token + token) * (top_k + 1) + i % top_k] = place;
  }
  for (int i = threadIdx.x; i < tokens; i += blockDim.x) {
    const int token = first_token + i;
    Place place = {.group_column = -1, .row = -1};
    if (shared) {
      place.group_column =
          (base.groups + token / p.group_rows) * kColumnsOfGroup + token % p.group_rows;
      place.row = base.rows + token;
      place.weight = p.shared_logits == nullptr ? 1.0f : Sigmoid(__ldcg(p.shared_logits + token));
      p.lists.row_token[base.rows + token] = token;
      p.lists.row_weight[base.rows + token] = place.weight;
    }
    p.lists.places[token * (top_k + 1) + top_k] = place;
  }
  if (index == 0 && threadIdx.x == 0) {
    p.lists.first_row[experts] = base.rows;
    p.lists.first_row[experts + 1] = base.rows + shared_rows;
    *p.lists.counts = {.routed_groups = base.groups,
                       .groups = base.groups + CeilDiv(shared_rows, p.group_rows),
                       .routed_rows = base.rows};
  }
}

// Up to kTokensOfBlock tokens by one block, from logits to lists. Prepare and a barrier came first.
__device__ inline void RouteInOneBlock(const RouteParams& p, const Block& block) {
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const int experts = p.routing.experts, top_k = p.routing.top_k;
  const int tokens = static_cast<int>(p.t);
  for (int i = warp; i < tokens; i += warps) {
    ChooseExperts<true>(
        p.routing, p.logits + i * experts, block.scratch + ScratchFloats(p.routing) * warp,
        block.picked + top_k * warp, block.chosen + top_k * i, block.weights + top_k * i);
    ChooseEvenlyInstead(p.routing, i, block.chosen + top_k * i, block.weights + top_k * i);
  }
  __syncthreads();
  FillMasks(p, block, tokens);
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += blockDim.x) block.rows[e] = __popcll(block.masks[e]);
  // A thread scans the experts that it counted.
  WriteLists(p, block, 0, tokens);
}

}  // namespace nibble::kernels::cuda::moe
