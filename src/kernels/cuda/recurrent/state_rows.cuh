// How the rows of a recurrent state lie in registers, and the one order of every sum over them.
//
// Eight lanes share a row; lane j holds columns 4 (j + 8 i) + e, i < kPieces, e < 4 (zero beyond
// the row's end), so that one load of the eight is 128 contiguous bytes. A lane holds kLaneRows
// rows, a warp kWarpRows neighbouring ones. A dot product runs through a lane's columns in two
// chains, of even and odd columns, and then over the lanes in a butterfly. Decoding and prompts
// share this, so that a token has the same bits however a sequence was cut into steps.
#pragma once

#include <cstdint>

namespace nibble::kernels::cuda {

inline constexpr int kRowLanes = 8;
inline constexpr int kLaneRows = 2;
inline constexpr int kWarpRows = 32 / kRowLanes * kLaneRows;
inline constexpr int kThreadsPerRow = kRowLanes / kLaneRows;

// Columns of a padded row.
template <int kPieces>
inline constexpr int kRowWidth = 4 * kRowLanes * kPieces;

// The kernels are compiled for rows of 1, 2, 4 and 8 pieces.
inline int PiecesOf(int32_t columns) {
  int pieces = 1;
  while (kRowWidth<1> * pieces < columns) pieces *= 2;
  return pieces;
}

template <int kPieces>
struct Columns {
  float x[4 * kPieces];

  __device__ float& operator[](int i) { return x[i]; }
  __device__ const float& operator[](int i) const { return x[i]; }
};

// `row` has n columns; vectors: it is 16-byte aligned and n a multiple of 4.
template <int kPieces>
__device__ __forceinline__ Columns<kPieces> LoadStateRow(const float* row, int n, int j,
                                                         bool vectors) {
  Columns<kPieces> s;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = 4 * (j + kRowLanes * i);
    float4 piece = {};
    if (vectors) {
      if (column < n) piece = __ldcg(reinterpret_cast<const float4*>(row + column));
    } else {
      if (column < n) piece.x = row[column];
      if (column + 1 < n) piece.y = row[column + 1];
      if (column + 2 < n) piece.z = row[column + 2];
      if (column + 3 < n) piece.w = row[column + 3];
    }
    s[4 * i] = piece.x, s[4 * i + 1] = piece.y, s[4 * i + 2] = piece.z, s[4 * i + 3] = piece.w;
  }
  return s;
}

template <int kPieces>
__device__ __forceinline__ void StoreStateRow(const Columns<kPieces>& s, float* row, int n, int j,
                                              bool vectors) {
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = 4 * (j + kRowLanes * i);
    if (vectors) {
      if (column < n)
        __stcg(reinterpret_cast<float4*>(row + column),
               make_float4(s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3]));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (column + e < n) row[column + e] = s[4 * i + e];
    }
  }
}

// A row of kRowWidth floats in shared memory, 16-byte aligned.
template <int kPieces>
__device__ __forceinline__ Columns<kPieces> LoadSharedRow(const float* row, int j) {
  Columns<kPieces> s;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const float4 piece = *reinterpret_cast<const float4*>(row + 4 * (j + kRowLanes * i));
    s[4 * i] = piece.x, s[4 * i + 1] = piece.y, s[4 * i + 2] = piece.z, s[4 * i + 3] = piece.w;
  }
  return s;
}

// The sum over a row's lanes, in all of them.
__device__ __forceinline__ float SumOverRowLanes(float x) {
#pragma unroll
  for (int distance = kRowLanes / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xFFFFFFFFu, x, distance);
  return x;
}

__device__ __forceinline__ float SumOverWarp(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xFFFFFFFFu, x, distance);
  return x;
}

// A lane's share of a dot product.
template <int kPieces>
__device__ __forceinline__ float LaneDot(const Columns<kPieces>& a, const Columns<kPieces>& b) {
  float even = 0, odd = 0;
#pragma unroll
  for (int i = 0; i < 4 * kPieces; i += 2) {
    even = fmaf(a[i], b[i], even);
    odd = fmaf(a[i + 1], b[i + 1], odd);
  }
  return even + odd;
}

// 1 / sqrt(mean of squares + eps) of n values, by a whole warp; value(i) is the i-th.
template <typename Value>
__device__ __forceinline__ float InverseRms(int n, float eps, const Value& value) {
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x % 32); i < n; i += 32) {
    const float x = value(i);
    squares = fmaf(x, x, squares);
  }
  return 1.0f / sqrtf(SumOverWarp(squares) / static_cast<float>(n) + eps);
}

}  // namespace nibble::kernels::cuda
