// How the weight of a linear lies in GPU memory, whatever its format, and the one order in which
// every kernel sums it.
//
// A weight (N, K) is cut into row tiles of 16 rows, these into k-tiles of 64 columns, and four
// k-tiles make a slice of 256. A row tile is contiguous, its slices ascend; the last slice may have
// fewer k-tiles. N and K are padded with zero codes to multiples of 16 and 64.
//
// Inside a k-tile lane t = 4 g + q (g < 8, q < 4) of a warp owns, of rows g and g + 8, the 16
// neighbouring columns 16 q .. 16 q + 15: one NVFP4 block each. Its bytes are stored as 16-byte
// vectors, vector v of all 32 lanes before vector v + 1, so that a warp reads 512 neighbouring
// bytes at a time:
//   4-bit codes   one vector: row g, then row g + 8
//   8-bit codes   two: row g; row g + 8
//   BF16          four: row g, columns 0..7 and 8..15 of the block; row g + 8, the same
// After the codes of all k-tiles of a slice come its block scales, if the format has them.
//
// As the A operand of an m16n8k16 MMA, atom j (0..3) of a k-tile takes columns 4 j .. 4 j + 3 of
// every lane's block: a0 = row g, columns 4 j, 4 j + 1; a1 = row g + 8, the same; a2 = row g,
// columns 4 j + 2, 4 j + 3; a3 = row g + 8, these. The B operand follows: lane t holds, for token
// n = g, b0 = x[16 q + 4 j, + 1], b1 = x[16 q + 4 j + 2, + 3]: a lane's four atoms are 32
// neighbouring bytes of a token's row. A wgmma k16 atom is the same atom.
//
// The order of summation, the same for every number of tokens: from zero, the atoms of a slice in
// ascending order by one chain of MMAs; then slice sums in FP32, ascending. Formats whose group
// scales are not exact in BF16 (INT4, INT8, FP8 with column blocks) end the chain at each group
// border and add scale * group sum to the slice's sum by one FMA, ascending. The finished sum times
// row_scales[n], plus bias[n], in FP32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble::kernels::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kTileColumns = 64;
inline constexpr int kSliceTiles = 4;
inline constexpr int kSliceColumns = kSliceTiles * kTileColumns;

// Handed to kernels by value.
struct WeightTiles {
  const std::byte* data = nullptr;    // (row_tiles) of row_tile_bytes each
  const float* row_scales = nullptr;  // (16 * row_tiles)
  int64_t row_tile_bytes = 0;
  int32_t n = 0;  // as stored
  int32_t k = 0;
  int32_t row_tiles = 0;
  int32_t k_tiles = 0;

  NIBBLE_HD int slices() const { return (k_tiles + kSliceTiles - 1) / kSliceTiles; }
};

}  // namespace nibble::kernels::cuda
