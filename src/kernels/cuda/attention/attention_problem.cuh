// What the attention kernels share: the call as a kernel parameter, which query rows form a tile,
// and which keys a tile sees. All of it is a function of arrays on the device, so that a recorded
// launch stays right while sequences grow.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention/attention_order.cuh"

namespace nibble::kernels::cuda {

// Rows of a sequence: its tokens times the query heads of one KV head, heads fastest. Neighbours
// form a tile, the M of the MMAs; a slot is a tile of some sequence.
// The split kernel's tiles have 16 rows, the prefill kernel's 64 or 128.
inline constexpr int kSplitTileRows = 16;

inline constexpr int kLatentDim = 576;  // of the keys that the latent kernel takes

inline constexpr int32_t kNoPrefill = 0x7fffffff;  // AttentionProblem::prefill_rows

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
  int32_t prefill_rows;    // sequences of more rows are the prefill kernel's
  int32_t tile_rows;       // of the split kernel
  int32_t splits;          // CTAs that share a tile's keys, at most
  int32_t units_per_tile;  // partial results that fit the workspace, per tile and KV head
};

struct AttentionTile {
  int32_t sequence;  // -1: none
  int32_t first_row;
  int32_t slot;
  int32_t first_token;  // of the sequence, in the step
  int32_t tokens;
  int32_t kv_len;
};

__device__ __forceinline__ int WarpInclusiveSum(int value, int lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffff, value, distance);
    if (lane >= distance) value += other;
  }
  return value;
}

// What a lane knows of one of 32 sequences while a warp looks for a tile.
struct TileSearch {
  int first_token;
  int tokens;
  int kv_len;
  int tiles;
  int tiles_before;

  __device__ __forceinline__ TileSearch(const AttentionProblem& p, int tile_rows, int sequence,
                                        int before) {
    first_token = tokens = kv_len = 0;
    if (sequence < p.sequences) {
      first_token = p.q_start[sequence];
      tokens = p.q_start[sequence + 1] - first_token;
      kv_len = p.kv_len[sequence];
    }
    const int rows = tokens * p.heads_per_kv;
    const bool of_prefill = rows > p.prefill_rows;
    tiles = of_prefill == (tile_rows > kSplitTileRows) ? (rows + tile_rows - 1) / tile_rows : 0;
    tiles_before = before + WarpInclusiveSum(tiles, threadIdx.x % 32) - tiles;
  }
  // Tile 0 of lane `owner`, whose sequence is `sequence`.
  __device__ __forceinline__ AttentionTile TileOf(int owner, int sequence) const {
    return {sequence,
            0,
            __shfl_sync(0xffffffff, tiles_before, owner),
            __shfl_sync(0xffffffff, first_token, owner),
            __shfl_sync(0xffffffff, tokens, owner),
            __shfl_sync(0xffffffff, kv_len, owner)};
  }
};

// The tile of a slot. By whole warps.
__device__ __forceinline__ AttentionTile FindTile(const AttentionProblem& p, int tile_rows,
                                                  int slot) {
  int before = 0;
  for (int base = 0; base < p.sequences; base += 32) {
    const TileSearch search(p, tile_rows, base + threadIdx.x % 32, before);
    const int end = search.tiles_before + search.tiles;
    const unsigned beyond = __ballot_sync(0xffffffff, slot < end);
    if (beyond != 0) {
      const int owner = __ffs(beyond) - 1;
      AttentionTile tile = search.TileOf(owner, base + owner);
      tile.first_row = (slot - tile.slot) * tile_rows;
      tile.slot = slot;
      return tile;
    }
    before = __shfl_sync(0xffffffff, end, 31);
  }
  return {-1};
}

// The split kernel's tile that holds the row of a token's head; none if the prefill kernel does.
__device__ __forceinline__ AttentionTile FindTileOfToken(const AttentionProblem& p, int token,
                                                         int head_of_group) {
  int before = 0;
  for (int base = 0; base < p.sequences; base += 32) {
    const TileSearch search(p, p.tile_rows, base + threadIdx.x % 32, before);
    const unsigned holders =
        __ballot_sync(0xffffffff, search.tiles > 0 && token >= search.first_token &&
                                      token < search.first_token + search.tokens);
    if (holders != 0) {
      const int owner = __ffs(holders) - 1;
      AttentionTile tile = search.TileOf(owner, base + owner);
      const int row = (token - tile.first_token) * p.heads_per_kv + head_of_group;
      const int index = row / p.tile_rows;
      tile.first_row = index * p.tile_rows;
      tile.slot += index;
      return tile;
    }
    before = __shfl_sync(0xffffffff, search.tiles_before + search.tiles, 31);
  }
  return {-1};
}

// Positions that something sees, both ends included; last < first: none.
struct KeyRange {
  int32_t first;
  int32_t last;
};

// `token` counts within the sequence.
__device__ __forceinline__ KeyRange KeysOfToken(const AttentionProblem& p,
                                                const AttentionTile& tile, int token) {
  if (token >= tile.tokens) return {0, -1};
  const int position = tile.kv_len - tile.tokens + token;
  int first = p.window > 0 ? max(0, position - p.window + 1) : 0;
  if (p.chunk > 0) first = max(first, position / p.chunk * p.chunk);
  return {first, position};
}

// Of `rows` rows from the tile's first on.
__device__ __forceinline__ KeyRange KeysOfTile(const AttentionProblem& p, const AttentionTile& tile,
                                               int rows) {
  const int last_row = min(tile.first_row + rows, tile.tokens * p.heads_per_kv) - 1;
  return {KeysOfToken(p, tile, tile.first_row / p.heads_per_kv).first,
          KeysOfToken(p, tile, last_row / p.heads_per_kv).last};
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

// Groups where CTAs are hardly longer at work with them than with blocks: they leave a sixteenth of
// the results.
__device__ __forceinline__ SplitPlan PlanOf(const AttentionProblem& p, KeyRange keys) {
  const int blocks = UnitsOf(keys, kBlockKeys);
  const int groups = UnitsOf(keys, kGroupKeys);
  if (groups > p.units_per_tile) return {kGroupKeys, false};
  const int blocks_of_cta = (blocks + p.splits - 1) / p.splits;
  const int groups_of_cta = (groups + p.splits - 1) / p.splits;
  if (blocks > p.units_per_tile || groups_of_cta * (kBlocksPerGroup - 1) <= blocks_of_cta)
    return {kGroupKeys, true};
  return {kBlockKeys, true};
}

// A partial result of a tile over one unit: o (rows, padded Dh), m (rows), l (rows), FP32.
__host__ __device__ inline int64_t PartialFloats(int32_t tile_rows, int32_t dim_atoms) {
  return int64_t{tile_rows} * (dim_atoms * 16 + 2);
}

__device__ __forceinline__ float* PartialEntry(const AttentionProblem& p, int slot, int kv_head,
                                               int unit) {
  const int64_t entry = (int64_t{slot} * p.kv_heads + kv_head) * p.units_per_tile + unit;
  return p.partials + entry * PartialFloats(p.tile_rows, p.dim_atoms);
}

}  // namespace nibble::kernels::cuda
