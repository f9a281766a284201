// How the rows of a recurrent state lie in registers, and the one order of every sum over them.
//
// Eight lanes share a row; lane j holds columns 4 (j + 8 i) + e, i < kPieces, e < 4 (zero beyond
// the row's end), so that one load of the eight is 128 contiguous bytes. A lane holds kLaneRows
// rows, a warp kWarpRows neighbouring ones. A dot product runs through a lane's columns in two
// chains, of even and odd columns, and then over the lanes in a butterfly. Decoding and prompts
// share this, so that a token has the same bits however a sequence was cut into steps.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

inline constexpr int kRowLanes = 8;

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

// `row` has n columns; vectors: it is 16-byte aligned and n a multiple of 4. With n = 0 zeros.
template <int kPieces>
__device__ __forceinline__ Columns<kPieces> LoadStateRow(const float* row, int n, int j,
                                                         bool vectors) {
  Columns<kPieces> s = {};
  if (vectors) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int column = 4 * (j + kRowLanes * i);
      float4 piece = {};
      if (column < n) piece = __ldcg(reinterpret_cast<const float4*>(row + column));
      s[4 * i] = piece.x, s[4 * i + 1] = piece.y, s[4 * i + 2] = piece.z, s[4 * i + 3] = piece.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4 * kPieces; ++i) {
      const int column = 4 * (j + kRowLanes * (i / 4)) + i % 4;
      if (column < n) s[i] = row[column];
    }
  }
  return s;
}

template <int kPieces>
__device__ __forceinline__ void StoreStateRow(const Columns<kPieces>& s, float* row, int n, int j,
                                              bool vectors) {
  if (vectors) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int column = 4 * (j + kRowLanes * i);
      if (column < n)
        __stcg(reinterpret_cast<float4*>(row + column),
               make_float4(s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4 * kPieces; ++i) {
      const int column = 4 * (j + kRowLanes * (i / 4)) + i % 4;
      if (column < n) row[column] = s[i];
    }
  }
}

// Whether the rows of a view are as LoadStateRow's vectors want them.
inline bool StateRowsAreVectors(const StateView& view, int columns) {
  return columns % 4 == 0 && reinterpret_cast<uintptr_t>(view.base) % 16 == 0 &&
         view.stride % 16 == 0;
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

// The first `rows` of kRows rows of kColumns floats, `stride` floats apart, into shared memory
// where they stand close together; by kThreads threads.
template <int kThreads, int kColumns, int kRows>
__device__ __forceinline__ void CopyRowsAsync(float* shared, const float* from, int stride,
                                              int rows) {
  constexpr int kCopies = kColumns / 4;  // of a row
  constexpr int kStep = kThreads / kCopies;
  static_assert(kThreads % kCopies == 0 && kRows % kStep == 0);
  const int first = static_cast<int>(threadIdx.x) / kCopies;
  const int column = static_cast<int>(threadIdx.x) % kCopies * 4;
  from += int64_t{first} * stride + column;
  shared += first * kColumns + column;
#pragma unroll
  for (int row = 0; row < kRows; row += kStep) {
    if (first + row < rows) ptx::CopyAsync16(shared + row * kColumns, from);
    from += kStep * stride;
  }
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
  return rsqrtf(SumOverWarp(squares) * (1.0f / static_cast<float>(n)) + eps);
}

}  // namespace nibble::kernels::cuda
