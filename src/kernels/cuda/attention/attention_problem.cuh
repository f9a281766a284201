// What the attention kernels share: the call as a kernel parameter, which query rows form a tile,
// and which keys a tile sees. All of it is a function of arrays on the device, so that a recorded
// launch stays right while sequences grow.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention/attention_order.cuh"

namespace nibble::kernels::cuda {

// Rows of a sequence: its tokens times the query heads of one KV head, heads fastest. Sixteen
// neighbours form a tile, the M of an MMA; a slot is a tile of some sequence.
inline constexpr int kTileRows = 16;

struct AttentionProblem {
  const uint16_t* q;
  uint16_t* out;
  const int32_t* q_start;
  const int32_t* kv_len;
  const int32_t* page_table;
  const uint8_t* k;
  const uint8_t* v;
  const float* sinks;
  float* partials;  // (slots, Hk, units_per_tile): PartialEntry each
  int64_t max_pages;
  int32_t sequences;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t heads_per_kv;
  int32_t head_dim;
  int32_t dim_atoms;  // ⌈Dh / 16⌉
  int32_t row_bytes;  // of a key
  int32_t page_shift;
  int32_t window;
  int32_t chunk;
  float score_scale;  // log2 e and the cache's scale included
  float value_scale;
  int32_t splits;          // CTAs that share a tile's keys, at most
  int32_t units_per_tile;  // partial results that fit the workspace, per tile and KV head
};

struct AttentionTile {
  int32_t sequence;  // -1: none
  int32_t first_row;
  int32_t slot;
};

__device__ __forceinline__ int TilesOf(const AttentionProblem& p, int sequence) {
  const int tokens = p.q_start[sequence + 1] - p.q_start[sequence];
  return (tokens * p.heads_per_kv + kTileRows - 1) / kTileRows;
}

__device__ __forceinline__ int WarpInclusiveSum(int value, int lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffff, value, distance);
    if (lane >= distance) value += other;
  }
  return value;
}

// The tile of a slot. By whole warps.
__device__ __forceinline__ AttentionTile FindTile(const AttentionProblem& p, int slot) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0; base < p.sequences; base += 32) {
    const int sequence = base + lane;
    const int tiles = sequence < p.sequences ? TilesOf(p, sequence) : 0;
    const int end = before + WarpInclusiveSum(tiles, lane);
    const unsigned beyond = __ballot_sync(0xffffffff, slot < end);
    if (beyond != 0) {
      const int owner = __ffs(beyond) - 1;
      const int begin = __shfl_sync(0xffffffff, end - tiles, owner);
      return {base + owner, (slot - begin) * kTileRows, slot};
    }
    before = __shfl_sync(0xffffffff, end, 31);
  }
  return {-1, 0, slot};
}

// The tile that holds a row of a token's.
__device__ __forceinline__ AttentionTile FindTileOfToken(const AttentionProblem& p, int token,
                                                         int head_of_group) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0; base < p.sequences; base += 32) {
    const int sequence = base + lane;
    const int tiles = sequence < p.sequences ? TilesOf(p, sequence) : 0;
    const int end = before + WarpInclusiveSum(tiles, lane);
    const bool holds = sequence < p.sequences && token < p.q_start[sequence + 1];
    const unsigned holders = __ballot_sync(0xffffffff, holds);
    if (holders != 0) {
      const int owner = __ffs(holders) - 1;
      const int begin = __shfl_sync(0xffffffff, end - tiles, owner);
      const int row = (token - p.q_start[base + owner]) * p.heads_per_kv + head_of_group;
      return {base + owner, row / kTileRows * kTileRows, begin + row / kTileRows};
    }
    before = __shfl_sync(0xffffffff, end, 31);
  }
  return {-1, 0, 0};
}

// Positions that something sees, both ends included; last < first: none.
struct KeyRange {
  int32_t first;
  int32_t last;
};

__device__ __forceinline__ KeyRange KeysOfToken(const AttentionProblem& p, int sequence,
                                                int token_of_sequence) {
  const int tokens = p.q_start[sequence + 1] - p.q_start[sequence];
  if (token_of_sequence >= tokens) return {0, -1};
  const int position = p.kv_len[sequence] - tokens + token_of_sequence;
  int first = p.window > 0 ? max(0, position - p.window + 1) : 0;
  if (p.chunk > 0) first = max(first, position / p.chunk * p.chunk);
  return {first, position};
}

__device__ __forceinline__ KeyRange KeysOfRow(const AttentionProblem& p, int sequence, int row) {
  return KeysOfToken(p, sequence, row / p.heads_per_kv);
}

// Of all rows [first_row, first_row + rows) of the sequence.
__device__ __forceinline__ KeyRange KeysOfRows(const AttentionProblem& p, int sequence,
                                               int first_row, int rows) {
  const int all_rows = (p.q_start[sequence + 1] - p.q_start[sequence]) * p.heads_per_kv;
  const int last_row = min(first_row + rows, all_rows) - 1;
  return {KeysOfRow(p, sequence, first_row).first, KeysOfRow(p, sequence, last_row).last};
}

// How a tile's keys are shared: units (blocks or groups) go round over `splits` CTAs, each leaves
// one partial result per unit; or one CTA does them all and writes the output.
struct SplitPlan {
  int32_t unit_keys;
  bool partial;
};

__device__ __forceinline__ int UnitsOf(KeyRange keys, int unit_keys) {
  return keys.last / unit_keys - keys.first / unit_keys + 1;
}

__device__ __forceinline__ SplitPlan PlanOf(const AttentionProblem& p, KeyRange keys) {
  if (UnitsOf(keys, kBlockKeys) <= p.units_per_tile) return {kBlockKeys, true};
  if (UnitsOf(keys, kGroupKeys) <= p.units_per_tile) return {kGroupKeys, true};
  return {kGroupKeys, false};
}

// A partial result of a tile over one unit: o (16, padded Dh), m (16), l (16), FP32.
__host__ __device__ inline int64_t PartialFloats(int32_t dim_atoms) {
  return int64_t{kTileRows} * (dim_atoms * 16 + 2);
}

__device__ __forceinline__ float* PartialEntry(const AttentionProblem& p, int slot, int kv_head,
                                               int unit) {
  const int64_t entry = (int64_t{slot} * p.kv_heads + kv_head) * p.units_per_tile + unit;
  return p.partials + entry * PartialFloats(p.dim_atoms);
}

}  // namespace nibble::kernels::cuda
