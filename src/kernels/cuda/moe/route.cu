// A warp chooses a token's experts: values in registers, top_k rounds of the warp's largest. Then
// the rows of every expert, by counting: a block's tokens are bits of one mask per expert, so that
// a row's place is a population count, whatever the order in which threads run. Up to
// kTokensOfBlock tokens it is one kernel of one block; for more, blocks first count (RouteKernel),
// then place their rows behind those of the blocks before them (PlaceKernel).
#include <algorithm>
#include <climits>
#include <cmath>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/route.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/reduce.cuh"

namespace nibble::kernels::cuda::moe {
namespace {

// ---- A token's choice

// Larger floats have larger keys; 0 is below all of them. -0 and 0 are equal.
__device__ __forceinline__ uint32_t OrderedKey(float value) {
  const auto bits = static_cast<int32_t>(__float_as_uint(value + 0.0f));
  return static_cast<uint32_t>(bits ^ ((bits >> 31) | INT_MIN));
}

__device__ __forceinline__ float ValueOfKey(uint32_t key) {
  const auto bits = static_cast<int32_t>(key);
  return __uint_as_float(static_cast<uint32_t>(bits ^ (~(bits >> 31) | INT_MIN)));
}

// Id of the warp's largest key, the smallest one among equals.
__device__ __forceinline__ int32_t WarpBest(uint32_t key, int32_t id) {
  const uint32_t largest = __reduce_max_sync(kAllLanes, key);
  return __reduce_min_sync(kAllLanes, key == largest ? id : INT_MAX);
}

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Marks the best top_groups groups in `taken` (groups), by `value` (E). sums: (groups) scratch.
__device__ void ChooseGroups(const Routing& routing, const float* value, float* sums, int* taken) {
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
    const int best = WarpBest(key, id);
    if (best % 32 == lane && best < routing.groups) taken[best] = 1;
  }
  __syncwarp();
}

// A lane's experts are lane, lane + 32, ...
template <int kPerLane>
struct Candidates {
  uint32_t keys[kPerLane];
  uint32_t best = 0;
  int32_t best_id = INT_MAX;

  __device__ __forceinline__ void FindBest() {
    best = 0, best_id = INT_MAX;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (keys[i] > best) best = keys[i], best_id = i * 32 + threadIdx.x % 32;
    }
  }
  __device__ __forceinline__ void Remove(int32_t id) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (id == i * 32 + static_cast<int>(threadIdx.x % 32)) keys[i] = 0;
    }
    FindBest();
  }
};

// The token's experts in ascending order, with their weights. logits: (E); scratch: (3 E) where
// there are groups; picked: (top_k) scratch.
template <int kPerLane>
__device__ void ChooseExperts(const Routing& routing, const float* logits, float* scratch,
                              int32_t* picked, int32_t* chosen, float* weights) {
  const int lane = threadIdx.x % 32, experts = routing.experts, top_k = routing.top_k;
  const bool softmax = routing.score == RouterScore::kSoftmax;
  // Scores grow with the logits: without a bias these choose the same experts, and tell apart what
  // rounds to equal scores.
  const bool by_logit = routing.choice_bias == nullptr && routing.groups == 1;
  float values[kPerLane];
  Candidates<kPerLane> candidates;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    values[i] = e < experts ? logits[e] : -INFINITY;
    candidates.keys[i] = e < experts ? OrderedKey(values[i]) : 0;
  }
  float largest = 0.0f, inverse_sum = 1.0f;
  if (softmax) {
    candidates.FindBest();
    largest = ValueOfKey(__reduce_max_sync(kAllLanes, candidates.best));
    if (!routing.renormalize || !by_logit) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) sum += expf(values[i] - largest);
      inverse_sum = 1.0f / WarpSum(sum);
    }
  }
  const auto score = [&](float logit) {
    return softmax ? expf(logit - largest) * inverse_sum : Sigmoid(logit);
  };
  if (!by_logit) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int e = i * 32 + lane;
      if (e >= experts) continue;
      values[i] = score(values[i]) + (routing.choice_bias != nullptr ? routing.choice_bias[e] : 0);
      candidates.keys[i] = OrderedKey(values[i]);
      if (routing.groups > 1) scratch[e] = values[i];
    }
    if (routing.groups > 1) {
      __syncwarp();
      int* const taken = reinterpret_cast<int*>(scratch + 2 * experts);
      ChooseGroups(routing, scratch, scratch + experts, taken);
      const int size = experts / routing.groups;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int e = i * 32 + lane;
        if (e < experts && !taken[e / size]) candidates.keys[i] = 0;
      }
    }
  }
  candidates.FindBest();
  for (int j = 0; j < top_k; ++j) {
    const int32_t id = WarpBest(candidates.best, candidates.best_id);
    if (candidates.best_id == id) candidates.Remove(id);
    if (lane == 0) picked[j] = min(id, experts - 1);
  }
  __syncwarp();
  float sum = 0.0f;
  for (int j = lane; j < top_k; j += 32) sum += score(logits[picked[j]]);
  sum = WarpSum(sum) + 1e-20f;
  const float factor = routing.renormalize ? routing.scale / sum : routing.scale;
  for (int j = lane; j < top_k; j += 32) {
    const int32_t id = picked[j];
    int rank = 0;
    for (int i = 0; i < top_k; ++i) rank += picked[i] < id;
    chosen[rank] = id;
    weights[rank] = score(logits[id]) * factor;
  }
  __syncwarp();
}

// ---- Lists

struct Pair {
  int32_t rows;
  int32_t groups;
};

__device__ __forceinline__ Pair operator+(Pair a, Pair b) {
  return {a.rows + b.rows, a.groups + b.groups};
}

// Exclusive over the block's threads; *total: of all. Ends with a barrier.
__device__ Pair BlockScan(Pair value, Pair* warp_sums, Pair* total) {
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
  int32_t* first_row;         // (E)
  int32_t* first_group;       // (E)
  int32_t* rows_before;       // (E): of the blocks before
  int32_t* chosen;            // (kTokensOfBlock, top_k)
  float* weights;             // (kTokensOfBlock, top_k)
  int32_t* picked;            // (warps, top_k)
  Pair* warp_sums;            // (32)
  float* scratch;             // (warps, 3 E), where there are groups
};

__host__ __device__ inline size_t Carve(std::byte* base, int experts, int top_k, int warps,
                                        bool groups, Block* block) {
  size_t used = 0;
  const auto take = [&](auto** pointer, size_t count) {
    using T = std::remove_reference_t<decltype(**pointer)>;
    *pointer = reinterpret_cast<T*>(base + used);
    used += (count * sizeof(T) + 15) / 16 * 16;
  };
  take(&block->masks, experts);
  take(&block->first_row, experts);
  take(&block->first_group, experts);
  take(&block->rows_before, experts);
  take(&block->chosen, kTokensOfBlock * top_k);
  take(&block->weights, kTokensOfBlock * top_k);
  take(&block->picked, warps * top_k);
  take(&block->warp_sums, 32);
  take(&block->scratch, groups ? 3 * experts * warps : 0);
  return used;
}

__device__ __forceinline__ bool Held(const RouteParams& p, int32_t expert) {
  return p.experts[expert].gate_up.tiles.data != nullptr;
}

// The block's tokens as bits of its experts' masks, which are clear.
__device__ void FillMasks(const RouteParams& p, const Block& block, int tokens) {
  const int slots = tokens * p.routing.top_k;
  for (int i = threadIdx.x; i < slots; i += blockDim.x) {
    const int32_t e = block.chosen[i];
    if (Held(p, e)) atomicOr(&block.masks[e], 1ull << (i / p.routing.top_k));
  }
}

__device__ __forceinline__ int CeilDiv(int a, int b) { return (a + b - 1) / b; }

__device__ void WriteGroups(const RouteParams& p, const Expert& expert, int32_t id,
                            int32_t first_row, int32_t rows, Group* groups) {
  for (int done = 0; done < rows; done += p.group_rows) {
    *groups++ = {.expert = expert,
                 .id = id,
                 .first_row = first_row + done,
                 .rows = min(p.group_rows, rows - done)};
  }
}

// The block's rows and places; block 0 also writes what there is once. all_rows(e): of the step;
// block.rows_before is filled.
template <typename AllRows>
__device__ void WriteLists(const RouteParams& p, const Block& block, int index, int tokens,
                           AllRows all_rows) {
  const int experts = p.routing.experts, top_k = p.routing.top_k;
  Pair base = {0, 0};
  for (int from = 0; from < experts; from += blockDim.x) {
    const int e = from + threadIdx.x;
    const int rows = e < experts ? all_rows(e) : 0;
    Pair total;
    const Pair before =
        base + BlockScan({rows, CeilDiv(rows, p.group_rows)}, block.warp_sums, &total);
    base = base + total;
    if (e >= experts) continue;
    block.first_row[e] = before.rows;
    block.first_group[e] = before.groups;
    if (index != 0) continue;
    p.lists.first_row[e] = before.rows;
    if (rows > 0) {
      WriteGroups(p, p.experts[e], e, before.rows, rows, p.lists.groups + before.groups);
    }
  }
  __syncthreads();
  const bool shared = p.shared.gate_up.tiles.data != nullptr;
  const int shared_rows = shared ? static_cast<int>(p.t) : 0;
  const int first_token = index * kTokensOfBlock;
  for (int i = threadIdx.x; i < tokens * top_k; i += blockDim.x) {
    const int token = i / top_k;
    const int32_t e = block.chosen[i];
    Place place = {-1, 0.0f};
    if (Held(p, e)) {
      const int rank = block.rows_before[e] + __popcll(block.masks[e] & ((1ull << token) - 1));
      const int row = block.first_row[e] + rank;
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
    Place place = {-1, 0.0f};
    if (shared) {
      place.group_column =
          (base.groups + token / p.group_rows) * kColumnsOfGroup + token % p.group_rows;
      place.weight = p.shared_logits == nullptr ? 1.0f : Sigmoid(p.shared_logits[token]);
      p.lists.row_token[base.rows + token] = token;
      p.lists.row_weight[base.rows + token] = place.weight;
      if (token % p.group_rows == 0) {
        WriteGroups(p, p.shared, experts, base.rows + token, min(p.group_rows, shared_rows - token),
                    p.lists.groups + base.groups + token / p.group_rows);
      }
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

// ---- Kernels

// The table is read on the critical path; it is static, so it may be fetched before.
__device__ void PrefetchTable(const RouteParams& p) {
  const auto* bytes = reinterpret_cast<const char*>(p.experts);
  const int size = p.routing.experts * static_cast<int>(sizeof(Expert));
  for (int at = threadIdx.x * 128; at < size; at += blockDim.x * 128)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(bytes + at));
}

template <int kPerLane>
__global__ void __launch_bounds__(1024) RouteKernel(const __grid_constant__ RouteParams p) {
  extern __shared__ __align__(16) std::byte memory[];
  ptx::LaunchSuccessor();
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const int experts = p.routing.experts, top_k = p.routing.top_k;
  Block block;
  Carve(memory, experts, top_k, warps, p.routing.groups > 1, &block);
  for (int e = threadIdx.x; e < experts; e += blockDim.x) {
    block.masks[e] = 0;
    block.rows_before[e] = 0;
  }
  if (blockIdx.x == 0) PrefetchTable(p);
  ptx::WaitForPredecessor();
  const int first_token = blockIdx.x * kTokensOfBlock;
  const int tokens = min(kTokensOfBlock, static_cast<int>(p.t) - first_token);
  for (int i = warp; i < tokens; i += warps) {
    ChooseExperts<kPerLane>(p.routing, p.logits + int64_t{first_token + i} * experts,
                            block.scratch + 3 * experts * warp, block.picked + top_k * warp,
                            block.chosen + top_k * i, block.weights + top_k * i);
  }
  __syncthreads();
  FillMasks(p, block, tokens);
  __syncthreads();
  if (gridDim.x == 1) {
    WriteLists(p, block, 0, tokens, [&](int e) { return __popcll(block.masks[e]); });
    return;
  }
  for (int i = threadIdx.x; i < tokens * top_k; i += blockDim.x) {
    p.chosen[first_token * top_k + i] = block.chosen[i];
    p.chosen_weight[first_token * top_k + i] = block.weights[i];
  }
  for (int e = threadIdx.x; e < experts; e += blockDim.x)
    p.block_counts[blockIdx.x * experts + e] = static_cast<uint8_t>(__popcll(block.masks[e]));
}

__global__ void __launch_bounds__(1024) PlaceKernel(const __grid_constant__ RouteParams p) {
  extern __shared__ __align__(16) std::byte memory[];
  ptx::LaunchSuccessor();
  const int experts = p.routing.experts, top_k = p.routing.top_k;
  Block block;
  Carve(memory, experts, top_k, 0, false, &block);
  for (int e = threadIdx.x; e < experts; e += blockDim.x) block.masks[e] = 0;
  ptx::WaitForPredecessor();
  const int first_token = blockIdx.x * kTokensOfBlock;
  const int tokens = min(kTokensOfBlock, static_cast<int>(p.t) - first_token);
  for (int i = threadIdx.x; i < tokens * top_k; i += blockDim.x) {
    block.chosen[i] = p.chosen[first_token * top_k + i];
    block.weights[i] = p.chosen_weight[first_token * top_k + i];
  }
  __syncthreads();
  FillMasks(p, block, tokens);
  // Barriers of the scan stand between masks and their readers.
  WriteLists(p, block, blockIdx.x, tokens, [&](int e) {
    int rows = 0;
    for (int b = 0; b < static_cast<int>(gridDim.x); ++b) {
      if (b == static_cast<int>(blockIdx.x)) block.rows_before[e] = rows;
      rows += p.block_counts[b * experts + e];
    }
    return rows;
  });
}

}  // namespace

int64_t MaxGroups(int64_t t, int32_t experts, int32_t top_k, bool shared, int32_t group_rows) {
  const int64_t rows = t * top_k;
  const int64_t routed = std::min(rows, experts + rows / group_rows);
  return routed + (shared ? (t + group_rows - 1) / group_rows : 0);
}

void Route(const OpContext& context, const RouteParams& params) {
  const Routing& routing = params.routing;
  const bool groups = routing.groups > 1;
  // The scratch for groups must fit.
  const int most = groups ? (routing.experts > 512 ? 8 : 16) : 32;
  const int warps = static_cast<int>(std::clamp<int64_t>(params.t, 8, most));
  Block ignored;
  const size_t smem = Carve(nullptr, routing.experts, routing.top_k, warps, groups, &ignored);
  const auto blocks = static_cast<unsigned>((params.t + kTokensOfBlock - 1) / kTokensOfBlock);
  const auto kernel = routing.experts <= 128   ? RouteKernel<4>
                      : routing.experts <= 512 ? RouteKernel<16>
                                               : RouteKernel<32>;
  LaunchPdl(kernel, blocks, 32 * warps, smem, StreamOf(context), params);
  if (blocks == 1) return;
  LaunchPdl(PlaceKernel, blocks, 1024,
            Carve(nullptr, routing.experts, routing.top_k, 0, false, &ignored), StreamOf(context),
            params);
}

}  // namespace nibble::kernels::cuda::moe
