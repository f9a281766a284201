// From the accumulators of a tile (tile_sums.cuh) to y: which tile it is, what its sums become and
// how they are stored.
#pragma once

#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/prefill/tile_sums.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace nibble::kernels::cuda {

// One tile: rows [16 * row_tile, ...) of a weight by tokens [first_token, + tokens).
struct TileWork {
  const std::byte* weight = nullptr;  // row tile 0
  const float* row_scales = nullptr;
  const float* bias = nullptr;  // or null
  int row_tile = 0;
  int first_token = 0;
  int tokens = 0;  // at most a tile's
};

// y or y_f32: (token, n). Rows of W from n on are not stored.
struct TileOutput {
  uint16_t* y = nullptr;
  float* y_f32 = nullptr;
  int64_t stride = 0;
  int n = 0;
  bool add = false;  // to y
};

#ifdef NIBBLE_HAVE_WGMMA

// What becomes of a sum.
struct RowEnd {
  float scale;
  float bias;

  __device__ __forceinline__ float Apply(float sum) const { return sum * scale + bias; }
};

// What a thread's accumulators become, of rows g and g + 8 of its warp's row tile, and where they
// go: rows from first_row on, tokens [first, end) of y.
struct TileEnd {
  struct {
    RowEnd low;
    RowEnd high;
  } rows;
  int first_row;
  int first;
  int end;
};

// Without a bias -0, which changes nothing.
__device__ __forceinline__ RowEnd EndOf(const TileWork& work, const TileOutput& out, int row) {
  if (row >= out.n) return {0.0f, 0.0f};
  return {work.row_scales[row], work.bias != nullptr ? work.bias[row] : -0.0f};
}

// Of the warpgroup with these 64 rows and kN tokens of a tile.
template <int kN>
__device__ __forceinline__ TileEnd EndOf(const TileWork& work, const TileOutput& out, int row_part,
                                         int token_part) {
  const int first_row = work.row_tile * kTileRows + row_part * kWarpgroupRows;
  const int row =
      first_row + threadIdx.x % kWarpgroupThreads / 32 * kTileRows + threadIdx.x % 32 / 4;
  return {.rows = {EndOf(work, out, row), EndOf(work, out, row + 8)},
          .first_row = first_row,
          .first = work.first_token + token_part * kN,
          .end = work.first_token + work.tokens};
}

// Accumulators of a warpgroup: rows from first_row on, tokens [first, end) of y. BF16 goes through
// shared memory, (kN tokens, 64 rows) in the swizzle of tokens.h, so that neighbouring rows of W
// are stored together.
template <int kN>
__device__ __forceinline__ void Store(const TileOutput& out, const float (&total)[kN / 2],
                                      const TileEnd& tile, std::byte* staging, int barrier) {
  const auto [rows, first_row, first, end] = tile;
  const int thread = threadIdx.x % kWarpgroupThreads;
  const int warp = thread / 32;
  const int lane = thread % 32;

  if (out.y_f32 != nullptr) {
    const int row = first_row + warp * kTileRows + lane / 4;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      const int token = first + i / 4 * 8 + lane % 4 * 2 + i % 2;
      const int n = row + i % 4 / 2 * 8;
      if (token < end && n < out.n)
        out.y_f32[token * out.stride + n] = (i % 4 < 2 ? rows.low : rows.high).Apply(total[i]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kN / 8; i += 2) {
    uint32_t values[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float* pair = total + 4 * (i + m / 2) + 2 * (m % 2);
      const RowEnd& row_end = m % 2 == 0 ? rows.low : rows.high;
      values[m] = ptx::PackBf16(row_end.Apply(pair[0]), row_end.Apply(pair[1]));
    }
    const int token = 8 * (i + lane / 16) + lane % 8;
    const int chunk = 2 * warp + lane / 8 % 2;
    ptx::StoreMatricesTransposed(staging + token * 128 + (chunk ^ token % 8) * 16, values);
  }
  ptx::SyncThreads(barrier, kWarpgroupThreads);
  const int chunk = thread % 8;
  const int n = first_row + 8 * chunk;
  const bool whole =
      out.stride % 8 == 0 && reinterpret_cast<uintptr_t>(out.y) % 16 == 0 && n + 8 <= out.n;
  for (int t = thread / 8; t < kN && first + t < end; t += kWarpgroupThreads / 8) {
    uint4 values = *reinterpret_cast<const uint4*>(staging + t * 128 + (chunk ^ t % 8) * 16);
    uint16_t* y = out.y + (first + t) * out.stride + n;
    if (out.add) values = AddBf16x8(LoadBf16x8(y, out.n - n, whole), values);
    if (whole) {
      *reinterpret_cast<uint4*>(y) = values;
    } else {
      const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (n + i < out.n) y[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
    }
  }
  ptx::SyncThreads(barrier, kWarpgroupThreads);  // before the next tile's values
}

#endif  // NIBBLE_HAVE_WGMMA

}  // namespace nibble::kernels::cuda
