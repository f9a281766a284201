// Attention of a few query rows over one chunk of keys: the unit of work of the CPU kernels.
//
// Chunks are kChunkKeys positions at fixed, absolute borders, visited in blocks of kBlockKeys. A
// query row's result over one chunk is an AttentionState row: the largest score m, the sum l of
// exp(score - m), and the weighted values o. A row merges its chunks in order of position, so its
// bits depend on the row's own keys alone: not on which rows share the tile, nor on which thread
// did which chunk. Within a chunk: a score adds its products pair by pair in order of d, of a pair
// the second first (as vdpbf16ps does), the sum of weights is kept in 16 lanes (position mod 16),
// each o[d] adds its products in order of position. Online softmax after Milakov and Gimelshein
// (2018), split over keys as in FlashDecoding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace nibble::kernels {

constexpr int32_t kBlockKeys = 16;
constexpr int32_t kChunkKeys = 256;
constexpr int32_t kMaxTileBlocks = 4;  // of keys scored, or values added, together

// FP8 codes are read as value * 2^-8 (exactly, by way of FP16); this factor belongs into the
// scales.
constexpr float kE4M3ReadScale = 256.0f;

constexpr int64_t PaddedHeadDim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Rows of partial results. An untouched row has m = -inf, l = 0, o = 0.
struct AttentionState {
  float* m = nullptr;  // (rows)
  float* l = nullptr;  // (rows)
  float* o = nullptr;  // (rows, PaddedHeadDim)
};

// The chunk that the thread will read next, which it asks for meanwhile. last < begin: none.
struct AttentionAhead {
  const int32_t* page_table = nullptr;
  int32_t kv_head = 0;
  int32_t begin = 0;
  int32_t last = -1;
};

struct AttentionChunk {
  const float* q = nullptr;             // (rows, Dh), as copy_queries left them
  const int32_t* first = nullptr;       // (rows): first visible position
  const int32_t* last = nullptr;        // (rows): last visible position
  int64_t rows = 0;                     // all heads of the group for each token of the tile
  int32_t begin = 0;                    // first position of the chunk, a multiple of kChunkKeys
  float scale = 1.0f;                   // of a score, the cache's scale included
  const int32_t* page_table = nullptr;  // of the sequence
  int32_t kv_head = 0;
  KvLayerView cache;
  AttentionAhead ahead;

  // Scratch.
  float* keys = nullptr;    // (kMaxTileBlocks, PaddedHeadDim, kBlockKeys), or BF16
  float* values = nullptr;  // (kMaxTileBlocks, kBlockKeys, PaddedHeadDim)
  float* scores = nullptr;  // (rows, kChunkKeys)
};

}  // namespace nibble::kernels
