// M = (I + A)^-1 and P of every chunk, and the factors that follow from its gates.
#pragma once

#include "kernels/cuda/gated_delta_net/chunk_span.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/ldmatrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kMatricesThreads = 128;
inline constexpr int kHeadsAtOnce = 2;  // two warps each

// Of a value head. Below the diagonal and on it: the decay from after token j to token i at [i][j],
// later M. Above it: A at [j][i], so that a column of A lies in a row.
using ChunkSquare = float[kDeltaChunk][kDeltaChunk + 4];

template <int kWidth>
union MatricesShared {
  ChunkTile<kWidth> tiles[2];  // k, q
  ChunkSquare squares[kHeadsAtOnce];
};

// Column c of (I + A)^-1 by forward substitution, 16 rows at a time; by a thread of two warps.
__device__ __forceinline__ void InvertColumn(ChunkSquare& square, int c) {
#pragma unroll 1
  for (int first = c / 32 * 32; first < kDeltaChunk; first += 16) {
    float x[16];
#pragma unroll
    for (int r = 0; r < 16; ++r) x[r] = first + r == c ? 1.0f : 0.0f;
    const auto subtract = [&](int j, float x_j, int from) {
      const float* column = &square[j][first];
#pragma unroll
      for (int r = 0; r < 16; r += 4) {
        if (r >= from) {
          const float4 part = *reinterpret_cast<const float4*>(column + r);
          x[r] = fmaf(-part.x, x_j, x[r]);
          x[r + 1] = fmaf(-part.y, x_j, x[r + 1]);
          x[r + 2] = fmaf(-part.z, x_j, x[r + 2]);
          x[r + 3] = fmaf(-part.w, x_j, x[r + 3]);
          continue;
        }
        // What lies on the other side of the diagonal is others' to write.
#pragma unroll
        for (int e = r; e < r + 4; ++e)
          if (e >= from) x[e] = fmaf(-column[e], x_j, x[e]);
      }
    };
#pragma unroll 8
    for (int j = c / 32 * 32; j < first; ++j) subtract(j, j < c ? 0.0f : square[j][c], 0);
#pragma unroll
    for (int r = 0; r < 15; ++r) subtract(first + r, x[r], r + 1);
#pragma unroll
    for (int r = 0; r < 16; ++r)
      if (first + r >= c) square[first + r][c] = x[r];
  }
}

// B fragments of a block from its product's accumulators: columns 0..7 and 8..15.
__device__ __forceinline__ void StoreFragments(const float (&left)[4], const float (&right)[4],
                                               uint4 (&block)[2][32], int lane) {
  const SplitPair a(left[0], left[1]), b(right[0], right[1]);
  const SplitPair c(left[2], left[3]), d(right[2], right[3]);
  block[0][lane] = make_uint4(a.hi, b.hi, c.hi, d.hi);
  block[1][lane] = make_uint4(a.lo, b.lo, c.lo, d.lo);
}

// CTA x: a key head; y: a slot. Products of keys once, then the key head's value heads.
template <int kWidth>
__global__ void __launch_bounds__(kMatricesThreads, 4)
    ChunkMatricesKernel(const __grid_constant__ GatedDeltaNetParams p,
                        const __grid_constant__ ChunkSpan span) {
#if __CUDA_ARCH__ >= 900  // as the recurrence
  __shared__ __align__(16) MatricesShared<kWidth> shared;
  __shared__ float2 scales[kDeltaChunk];
  __shared__ float2 gates[kHeadsAtOnce][kDeltaChunk];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int key_head = static_cast<int>(blockIdx.x);
  const int64_t slot = blockIdx.y;
  const int heads_per_key = p.v_heads / p.k_heads;

  const bool exists = ChunkRows::At(p, span.first + slot).exists;
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if (!exists) return;
  const int64_t key = slot * p.k_heads + key_head;
  const auto* from =
      reinterpret_cast<const uint4*>(span.keys + key * 2 * kDeltaChunk * int64_t{kWidth});
  for (int i = thread; i < static_cast<int>(sizeof(shared.tiles) / 16); i += kMatricesThreads)
    ptx::CopyAsync16(reinterpret_cast<uint4*>(shared.tiles) + i, from + i);
  ptx::CommitCopies();
  if (thread < kDeltaChunk) scales[thread] = span.scales[key * kDeltaChunk + thread];
  ptx::WaitForCopies<0>();
  __syncthreads();

  // Rows 16 warp.. of K Kᵀ and Q Kᵀ, blocks of 16 columns up to the diagonal.
  float kk[kChunkBlocks][2][4] = {}, qk[kChunkBlocks][2][4] = {};
  // Matrices 1 and 2 of a block change places in fragments of A.
  const int a_lane = (lane & 7) + (lane & 8) * 2 + (lane & 16) / 2;
  const auto block_of = [&](int tile, int row, int column, int of_lane) {
    return ptx::SharedAddress(shared.tiles[tile].elements) +
           ((row * (kWidth / 16) + column) * 32 + of_lane) * 16;
  };
#pragma unroll
  for (int d = 0; d < kWidth / 16; ++d) {
    uint32_t k[4], q[4];
    ptx::LoadMatrices(k, block_of(0, warp, d, a_lane));
    ptx::LoadMatrices(q, block_of(1, warp, d, a_lane));
#pragma unroll
    for (int j = 0; j < kChunkBlocks; ++j) {
      if (j > warp) continue;
      uint32_t b[4];
      ptx::LoadMatrices(b, block_of(0, j, d, lane));
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        ptx::MmaBf16(kk[j][n], k, b[2 * n], b[2 * n + 1]);
        ptx::MmaBf16(qk[j][n], q, b[2 * n], b[2 * n + 1]);
      }
    }
  }

  const int mine = thread / kDeltaChunk, token = thread % kDeltaChunk;  // head of the two, column
  const int row = 16 * warp + lane / 4, column = 2 * (lane % 4);        // of fragments
#pragma unroll 1
  for (int h = 0; h < heads_per_key; h += kHeadsAtOnce) {
    const int heads = min(kHeadsAtOnce, heads_per_key - h);
    const int64_t first_head = slot * p.v_heads + key_head * heads_per_key + h;
    const int64_t at = (first_head + mine) * kDeltaChunk + token;
    if (mine < heads) gates[mine][token] = span.gates[at];
    __syncthreads();  // and the tiles, or M of the heads before, have been read
    if (mine < heads) {
      ChunkSquare& square = shared.squares[mine];
      float decay = 1.0f;
      square[token][token] = decay;
#pragma unroll 8
      for (int i = token / 32 * 32 + 1; i < kDeltaChunk; ++i) {
        if (i <= token) continue;
        decay *= gates[mine][i].x;
        square[i][token] = decay;
      }
    }
    __syncthreads();
    if (mine < heads) {
      const ChunkSquare& square = shared.squares[mine];
      const float first = gates[mine][0].x, since_start = first * square[token][0];
      span.factors[at] = {.beta = gates[mine][token].y,
                          .recall = since_start * scales[token].x,
                          .keep = square[kDeltaChunk - 1][token] * scales[token].x,
                          .total = first * square[kDeltaChunk - 1][0]};
      span.reads[at] = since_start * scales[token].y;
    }
#pragma unroll 1
    for (int other = 0; other < heads; ++other) {
      ChunkSquare& square = shared.squares[other];
      ChunkMatrix& scores = span.scores[first_head + other];
      float of_row[2], of_read[2];  // factors of rows `row`, `row` + 8 in A and P
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        of_row[e] = gates[other][row + 8 * e].y * scales[row + 8 * e].x;
        of_read[e] = scales[row + 8 * e].y;
      }
#pragma unroll
      for (int j = 0; j < kChunkBlocks; ++j) {
        if (j > warp) continue;
        float products[2][4];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int r = row + 8 * (e / 2), c = 16 * j + 8 * n + column + e % 2;
            const float decay = c <= r ? square[r][c] * scales[c].x : 0.0f;
            if (c < r) square[c][r] = of_row[e / 2] * decay * kk[j][n][e];
            products[n][e] = of_read[e / 2] * decay * qk[j][n][e];
          }
        }
        StoreFragments(products[0], products[1], scores.blocks[LowerBlock(warp, j)], lane);
      }
    }
    __syncthreads();
    if (mine < heads) InvertColumn(shared.squares[mine], token);
    __syncthreads();
#pragma unroll 1
    for (int other = 0; other < heads; ++other) {
      const ChunkSquare& square = shared.squares[other];
      ChunkMatrix& inverse = span.inverses[first_head + other];
      for (int j = 0; j <= warp; ++j) {
        float elements[2][4];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int r = row + 8 * (e / 2), c = 16 * j + 8 * n + column + e % 2;
            elements[n][e] = c <= r ? square[r][c] : 0.0f;
          }
        }
        StoreFragments(elements[0], elements[1], inverse.blocks[LowerBlock(warp, j)], lane);
      }
    }
  }
#endif
}

}  // namespace nibble::kernels::cuda
