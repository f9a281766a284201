// Where tokens lie that are laid out (tokens.h), for kernels that write them.
#pragma once

#include "kernels/cuda/prefill/tokens.h"

namespace nibble::kernels::cuda {

// In parts of 8 * part_groups tokens of 64 * tiles columns.
struct TokenPlaces {
  std::byte* data = nullptr;  // null: there are none
  int tiles = 0;
  int part_groups = 0;

  // The 128 bytes of a token's column tile.
  __device__ __forceinline__ std::byte* Row(int64_t token, int tile) const {
    const int group = static_cast<int>(token / kGroupTokens);
    const int part = group / part_groups;
    const int64_t piece = int64_t{part * tiles + tile} * part_groups + (group - part * part_groups);
    return data + piece * kPieceBytes + token % kGroupTokens * 128;
  }
  // Chunk `chunk` of it.
  __device__ __forceinline__ uint4* Chunk(int64_t token, int tile, int chunk) const {
    return reinterpret_cast<uint4*>(Row(token, tile)) + (chunk ^ static_cast<int>(token % 8));
  }
  // Two neighbouring columns, the first of which is even.
  __device__ __forceinline__ uint32_t* Pair(int64_t token, int column) const {
    const int place = column % kTileColumns;
    return reinterpret_cast<uint32_t*>(Chunk(token, column / kTileColumns, place % 16 / 2)) +
           place / 16;
  }
  __device__ __forceinline__ uint16_t* Element(int64_t token, int column) const {
    return reinterpret_cast<uint16_t*>(Pair(token, column & ~1)) + column % 2;
  }
  // Eight neighbouring columns from a multiple of 8 on: a word of each of four chunks.
  __device__ __forceinline__ void Store8(int64_t token, int column, uint4 values) const {
    const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
    const int place = column % kTileColumns;
    auto* const chunks = reinterpret_cast<uint4*>(Row(token, column / kTileColumns));
#pragma unroll
    for (int i = 0; i < 4; ++i)
      reinterpret_cast<uint32_t*>(
          chunks + ((place % 16 / 2 + i) ^ static_cast<int>(token % 8)))[place / 16] = pairs[i];
  }
};

// Tokens of k columns, a multiple of 64, as `layout` says.
__host__ __device__ __forceinline__ TokenPlaces PlacesOf(uint16_t* memory, ActivationLayout layout,
                                                         int64_t k) {
  if (layout.part_tokens == 0) return {};
  return {reinterpret_cast<std::byte*>(memory), static_cast<int>(k / kTileColumns),
          layout.part_tokens / kGroupTokens};
}

}  // namespace nibble::kernels::cuda
