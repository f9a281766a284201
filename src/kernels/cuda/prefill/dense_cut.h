// How a dense product is cut into tiles, which CTAs take in the order of their numbers. Tokens go
// in bands that are walked through all rows before the next one, so that what of x is read again
// stays in L2. Plain arithmetic, the same on host and device.
#pragma once

#include <cstdint>

#include "kernels/cuda/linear/weight_tiles.h"
#include "numerics/host_device.h"

namespace nibble::kernels::cuda {

inline constexpr int kBandTokens = 2112;

struct DenseTile {
  int row_tile = 0;
  int first_token = 0;
  int tokens = 0;
};

struct DenseCut {
  int tile_rows;
  int tile_tokens;
  int band_tiles;  // of tokens
  int row_blocks;
  int token_blocks;

  // rows, tokens: of a tile, the first a multiple of 16.
  DenseCut(const WeightTiles& weight, int64_t m, int rows, int tokens)
      : tile_rows(rows),
        tile_tokens(tokens),
        band_tiles(kBandTokens / tokens),
        row_blocks((weight.row_tiles + rows / kTileRows - 1) / (rows / kTileRows)),
        token_blocks((static_cast<int>(m) + tokens - 1) / tokens) {}

  NIBBLE_HD int count() const { return row_blocks * token_blocks; }
  // m: as it was cut.
  NIBBLE_HD DenseTile At(int index, int64_t m) const {
    const int band = index / (band_tiles * row_blocks);
    const int left = token_blocks - band * band_tiles;
    const int width = band_tiles < left ? band_tiles : left;
    const int within = index - band * band_tiles * row_blocks;
    const int first = (band * band_tiles + within % width) * tile_tokens;
    const int tokens = static_cast<int>(m) - first;
    return {within / width * (tile_rows / kTileRows), first,
            tile_tokens < tokens ? tile_tokens : tokens};
  }
};

}  // namespace nibble::kernels::cuda
