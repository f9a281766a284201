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
// The order of the codes inside a row's 8 or 16 bytes: fragments.cuh. After the codes of all
// k-tiles of a slice come its block scales, ScaleBytes() of them even where the slice is short:
//   NVFP4            8 bytes per lane: k-tile 0, rows g and g + 8, k-tile 1, ...
//   MXFP4, MXFP8     the same for every pair of lanes, which share a block of 32 columns
//   column groups    FP32, (256 / group_columns, 16 rows); INT4 and INT8: then zero points, a byte
//                    each, (256 / group_columns, 16)
//
// Weights wider than BF16 are exact sums of BF16 planes, two for F16 and three for F32, side by
// side along K: their k_tiles are planes * x_tiles, and k-tile t meets x's k-tile t mod x_tiles.
//
// Of gate and up, F rows of each, rows may be paired: row tile v holds rows 8 v .. 8 v + 7 of gate,
// then the same of up, so that who has the sums of a tile can put the activation behind them.
//
// As the A operand of an m16n8k16 MMA, atom j (0..3) of a k-tile takes columns 4 j .. 4 j + 3 of
// every lane's block: a0 = row g, columns 4 j, 4 j + 1; a1 = row g + 8, the same; a2 = row g,
// columns 4 j + 2, 4 j + 3; a3 = row g + 8, these. The B operand follows: lane t holds, for token
// n = g, b0 = x[16 q + 4 j, + 1], b1 = x[16 q + 4 j + 2, + 3]: a lane's four atoms are 32
// neighbouring bytes of a token's row. A wgmma k16 atom is the same atom.
//
// The order of summation, the same for every number of tokens: from zero, the atoms of a slice in
// ascending order by one chain of MMAs; then slice sums in FP32, ascending. Formats whose group
// scales are not exact in BF16 (group_columns > 0) end the chain at each group border and add
// scale * group sum to the slice's sum (from zero) by one FMA, ascending; groups of 32 columns take
// the lanes q < 2 of a k-tile's four atoms first, then the others, with zeros in place of the rest.
// The finished sum times row_scales[n], plus bias[n], in FP32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble::kernels::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kPairedRows = kTileRows / 2;
inline constexpr int kTileColumns = 64;
inline constexpr int kSliceTiles = 4;
inline constexpr int kSliceColumns = kSliceTiles * kTileColumns;

// What kernels tell apart. BF16 holds F16 and F32, too, as planes.
enum class TileFormat : uint8_t {
  kNvfp4,
  kMxfp4,
  kBf16,
  kFp8,        // scales per tensor or row: in row_scales
  kMxfp8,      // E8M0 scales of 32 columns
  kFp8Groups,  // other scales along K
  kInt4,
  kInt8,
};

// Of the codes of one k-tile.
NIBBLE_HD constexpr int CodeBytes(TileFormat format) {
  switch (format) {
    case TileFormat::kNvfp4:
    case TileFormat::kMxfp4:
    case TileFormat::kInt4:
      return kTileRows * kTileColumns / 2;
    case TileFormat::kBf16:
      return kTileRows * kTileColumns * 2;
    default:
      return kTileRows * kTileColumns;
  }
}

NIBBLE_HD constexpr bool HasGroups(TileFormat format) {
  return format == TileFormat::kFp8Groups || format == TileFormat::kInt4 ||
         format == TileFormat::kInt8;
}

// Of the scales of one slice: a multiple of 16.
NIBBLE_HD constexpr int ScaleBytes(TileFormat format, int group_columns) {
  switch (format) {
    case TileFormat::kNvfp4:
      return 256;
    case TileFormat::kMxfp4:
    case TileFormat::kMxfp8:
      return 128;
    case TileFormat::kFp8Groups:
      return kSliceColumns / group_columns * kTileRows * 4;
    case TileFormat::kInt4:
    case TileFormat::kInt8:
      return kSliceColumns / group_columns * kTileRows * 5;
    default:
      return 0;
  }
}

// Of paired rows, F of gate and F of up. Where row `row` of the stack lies:
NIBBLE_HD constexpr int64_t PairedPlace(int64_t row, int64_t f) {
  const int64_t output = row < f ? row : row - f;
  return output / kPairedRows * kTileRows + (row < f ? 0 : kPairedRows) + output % kPairedRows;
}
// Which output the row at `place` takes part in, and which row of the stack it is:
NIBBLE_HD constexpr int PairedOutput(int place) {
  return place / kTileRows * kPairedRows + place % kPairedRows;
}
NIBBLE_HD constexpr int PairedStackRow(int place, int f) {
  return (place % kTileRows < kPairedRows ? 0 : f) + PairedOutput(place);
}

// Handed to kernels by value.
struct WeightTiles {
  const std::byte* data = nullptr;    // (row_tiles) of row_tile_bytes each
  const float* row_scales = nullptr;  // (16 * row_tiles)
  int64_t row_tile_bytes = 0;
  int32_t n = 0;  // as stored
  int32_t k = 0;
  int32_t row_tiles = 0;
  int32_t k_tiles = 0;        // of all planes
  int32_t x_tiles = 0;        // ⌈k / 64⌉
  int32_t group_columns = 0;  // 32, 64, 128 or 256 where HasGroups(format)
  TileFormat format = TileFormat::kBf16;

  NIBBLE_HD int slices() const { return (k_tiles + kSliceTiles - 1) / kSliceTiles; }
  // k-tiles of one slice.
  NIBBLE_HD int tiles_of(int slice) const {
    const int left = k_tiles - slice * kSliceTiles;
    return left < kSliceTiles ? left : kSliceTiles;
  }
  // Bytes from one slice of a row tile to the next.
  NIBBLE_HD int slice_stride() const {
    return kSliceTiles * CodeBytes(format) + ScaleBytes(format, group_columns);
  }
};

}  // namespace nibble::kernels::cuda
