// How a dense product is cut into tiles, which CTAs take in the order of their numbers. Tokens go
// in bands that are walked through all rows before the next one, so that what of x is read again
// stays in L2. Plain arithmetic, the same on host and device.
#pragma once

#include <cstdint>

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/cuda/prefill/divisor.h"
#include "numerics/host_device.h"

namespace nibble::kernels::cuda {

inline constexpr int kBandTokens = 2112;
constexpr int BandTiles(int tile_tokens) { return kBandTokens / tile_tokens; }

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
  Divisor by_band;   // tiles of a band
  Divisor by_width;  // of its tiles of tokens
  Divisor by_last_width;

  // rows, tokens: of a tile, the first a multiple of 16. m > 0.
  DenseCut(const WeightTiles& weight, int64_t m, int rows, int tokens)
      : tile_rows(rows),
        tile_tokens(tokens),
        band_tiles(BandTiles(tokens)),
        row_blocks((weight.row_tiles + rows / kTileRows - 1) / (rows / kTileRows)),
        token_blocks((static_cast<int>(m) + tokens - 1) / tokens),
        by_band(band_tiles * row_blocks),
        by_width(band_tiles),
        by_last_width((token_blocks - 1) % band_tiles + 1) {}

  NIBBLE_HD int count() const { return row_blocks * token_blocks; }
  // m: as it was cut.
  NIBBLE_HD DenseTile At(int index, int64_t m) const {
    const int band = by_band.Of(index);
    const int within = index - band * by_band.divisor();
    const bool last = (band + 1) * band_tiles >= token_blocks;
    const int row_block = last ? by_last_width.Of(within) : by_width.Of(within);
    const int column = within - row_block * (last ? by_last_width : by_width).divisor();
    const int first = (band * band_tiles + column) * tile_tokens;
    const int tokens = static_cast<int>(m) - first;
    return {row_block * (tile_rows / kTileRows), first,
            tile_tokens < tokens ? tile_tokens : tokens};
  }
};

}  // namespace nibble::kernels::cuda
