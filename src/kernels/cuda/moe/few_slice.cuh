// What a warp of the kernels of few_tokens.h does with a slice of gate and up, or of down: 16 rows,
// 256 columns of each, times the up to 8 rows of a group. The order of summation is that of
// weight_tiles.h.
#pragma once

#include "kernels/cuda/moe/one_slice.cuh"

namespace nibble::kernels::cuda::moe {

// Starts the copy of a slice of `tiles` k-tiles to a stage, as CopySliceByLanes does. stage, slice:
// both behind what earlier lanes copy, 16 bytes each. kWhole, here and below: slices are of four.
template <Formats kFormats, bool kWhole>
__device__ __forceinline__ void CopyFewSlice(uint32_t stage, const std::byte* slice, int tiles,
                                             int lane) {
  constexpr int kTile = CodeBytes(kOnlyFormat<kFormats>);
  constexpr int kScaleVectors = ScaleBytes(kOnlyFormat<kFormats>, 0) / 16;
  static_assert(kTile == 512 && kSliceTiles == 4);
  if (kWhole || tiles == kSliceTiles) {
    ptx::CopyAsync16Behind<0>(stage, slice);
    ptx::CopyAsync16Behind<kTile>(stage, slice);
    ptx::CopyAsync16Behind<2 * kTile>(stage, slice);
    ptx::CopyAsync16Behind<3 * kTile>(stage, slice);
    if (lane < kScaleVectors) ptx::CopyAsync16Behind<4 * kTile>(stage, slice);
  } else {
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) ptx::CopyAsync16To(stage + i * kTile, slice + i * kTile);
    if (lane < kScaleVectors)
      ptx::CopyAsync16To(stage + kSliceTiles * kTile, slice + tiles * kTile);
  }
}

// Adds k-tiles 0 .. tiles - 1 of kParts weights, whose chains of MMAs do not wait for one another.
// columns[i]: of k-tile i, what the lane holds of the row lane / 4. load(i) comes before the
// columns of k-tile i are used, after(i) when they have been.
template <Formats kFormats, int kParts, bool kWhole, typename Load, typename After>
__device__ __forceinline__ void MultiplyParts(const OneSlice<kFormats>* parts, int tiles,
                                              const uint4 (*columns)[2], Load load, After after,
                                              float (&sum)[kParts][4]) {
#pragma unroll
  for (int i = 0; i < kSliceTiles; ++i) {
    if (kWhole || i < tiles) {
      load(i);
      uint32_t a[kParts][4][4];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint4 codes[1] = {parts[part].codes[i]};
        parts[part].scales.Decode(codes, i, a[part]);
      }
      const uint4 low = columns[i][0], high = columns[i][1];
      const uint32_t x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int atom = 0; atom < 4; ++atom)
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          ptx::MmaBf16(sum[part], a[part][atom], x[2 * atom], x[2 * atom + 1]);
    }
    after(i);
  }
}

// A finished slice joins its row's total.
template <int kParts>
__device__ __forceinline__ void AddSlice(const float (&sum)[kParts][4], float (&total)[kParts][4]) {
#pragma unroll
  for (int part = 0; part < kParts; ++part)
#pragma unroll
    for (int i = 0; i < 4; ++i) total[part][i] += sum[part][i];
}

// Row scales of the 16 outputs of a row tile.
__device__ __forceinline__ void CopyRowScales(uint32_t to, const float* scales, int lane) {
  if (lane < kTileRows / 4) ptx::CopyAsync16To(to + lane * 16, scales + lane * 4);
}

}  // namespace nibble::kernels::cuda::moe
