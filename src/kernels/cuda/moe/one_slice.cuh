// What a warp of the kernels of one_token.h does with one slice of a weight of 4 bits: 16 rows, 256
// columns, times the one row of x. The order of summation is that of weight_tiles.h.
#pragma once

#include "kernels/cuda/linear/warp_stages.cuh"
#include "kernels/cuda/moe/slice.cuh"

namespace nibble::kernels::cuda::moe {

template <Formats kFormats>
inline constexpr int kSliceBytesOf = WholeSliceBytes(kOnlyFormat<kFormats>);

// A lane's codes and scales of a slice. What lies in the place of k-tiles that are not there is
// finite and meets zeros of x.
template <Formats kFormats>
struct OneSlice {
  static constexpr TileFormat kFormat = kOnlyFormat<kFormats>;
  uint4 codes[kSliceTiles];
  LaneScales<kFormat> scales;

  __device__ __forceinline__ OneSlice(const std::byte* stage, int lane)
      : scales(stage + kSliceTiles * CodeBytes(kFormat), 0, lane) {
#pragma unroll
    for (int i = 0; i < kSliceTiles; ++i)
      codes[i] = *reinterpret_cast<const uint4*>(stage + i * CodeBytes(kFormat) + lane * 16);
  }
};

// Sums of rows lane / 4 and lane / 4 + 8 in the lanes with lane % 4 == 0, of kCount slices at once,
// whose chains of MMAs do not wait for one another. x: of each slice 256 columns in shared memory.
template <Formats kFormats, int kCount>
__device__ __forceinline__ void MultiplySlices(const OneSlice<kFormats> (&slices)[kCount],
                                               const uint16_t* const (&x)[kCount], int lane,
                                               float2 (&sums)[kCount]) {
  float sum[kCount][4] = {};
#pragma unroll
  for (int i = 0; i < kSliceTiles; ++i) {
#pragma unroll
    for (int s = 0; s < kCount; ++s) {
      const auto* at = reinterpret_cast<const uint4*>(x[s] + i * kTileColumns + lane % 4 * 16);
      const uint4 low = at[0], high = at[1];
      const uint4 tile[1] = {slices[s].codes[i]};
      uint32_t a[4][4];
      slices[s].scales.Decode(tile, i, a);
      ptx::MmaBf16(sum[s], a[0], low.x, low.y);
      ptx::MmaBf16(sum[s], a[1], low.z, low.w);
      ptx::MmaBf16(sum[s], a[2], high.x, high.y);
      ptx::MmaBf16(sum[s], a[3], high.z, high.w);
    }
  }
#pragma unroll
  for (int s = 0; s < kCount; ++s) sums[s] = {sum[s][0], sum[s][2]};
}

// A slice's sums in shared memory (16 rows), until they are added in order.
__device__ __forceinline__ void StoreOneSum(float* to, float2 sum, int lane) {
  if (lane % 4 != 0) return;
  to[lane / 4] = sum.x;
  to[lane / 4 + 8] = sum.y;
}

}  // namespace nibble::kernels::cuda::moe
