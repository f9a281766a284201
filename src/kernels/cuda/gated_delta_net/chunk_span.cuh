// Where chunks are in a step, and what is kept of them between the kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/recurrent/step_sequence.cuh"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

inline constexpr int kChunkBlocks = kDeltaChunk / 16;                       // of 16 tokens
inline constexpr int kLowerBlocks = kChunkBlocks * (kChunkBlocks + 1) / 2;  // 16 x 16
inline constexpr int kSliceRows = 32;                                       // of a state

// Row of blocks i, column j <= i.
__host__ __device__ constexpr int LowerBlock(int i, int j) { return i * (i + 1) / 2 + j; }

// A lower triangular matrix (64, 64) as B fragments of mma.cuh, hi and lo.
struct ChunkMatrix {
  uint4 blocks[kLowerBlocks][2][32];
};

// (64, kColumns) BF16 in blocks of 16 x 16, each four matrices of 8 x 8 in a row, as ldmatrix reads
// them: rows 0..7, columns 0..7; columns 8..15; then rows 8..15.
template <int kColumns>
struct ChunkTile {
  uint16_t elements[kDeltaChunk * kColumns];
};

// Of a row's 8 columns from a multiple of 8 on.
__device__ __forceinline__ int TileOffset(int columns, int row, int column) {
  const int block = row / 16 * (columns / 16) + column / 16;
  return ((block * 4 + row / 8 % 2 * 2 + column / 8 % 2) * 8 + row % 8) * 8;
}

// Of a token of a chunk, one value head.
struct ChunkFactors {
  float beta;
  float recall;  // of k·S: e^G and k's scale
  float keep;    // of Δ kᵀ in the next state: e^(G_last - G) and k's scale
  float total;   // e^(G_last), the same for all tokens
};

// Two BF16 each whose sum is nearly a, nearly b.
struct SplitPair {
  uint32_t hi, lo;

  __device__ __forceinline__ SplitPair(float a, float b) {
    hi = ptx::PackBf16(a, b);
    lo = ptx::PackBf16(a - ptx::FirstBf16(hi), b - ptx::SecondBf16(hi));
  }
};

// A slot is 64 rows of the step; the chunk that begins in it is its own, and contains its last row.
struct ChunkSpan {
  int64_t first = 0;  // slots
  int64_t count = 0;
  int32_t key_width = 0;            // Dk, padded
  int32_t value_width = 0;          // Dv, padded to slices
  uint16_t* keys = nullptr;         // (count, Hk, 2): tiles of k and q, raw
  uint16_t* values = nullptr;       // (count, Hv, value_width / kSliceRows): tiles
  ChunkMatrix* inverses = nullptr;  // (count, Hv): M
  ChunkMatrix* scores = nullptr;    // (count, Hv): P
  ChunkFactors* factors = nullptr;  // (count, Hv, 64)
  float* reads = nullptr;           // (count, Hv, 64): of q·S: e^G and q's scale
  float2* scales = nullptr;         // (count, Hk, 64): of k and q
  float2* gates = nullptr;          // (count, Hv, 64): e^g, β
  float* o = nullptr;               // (count, Hv, 64, value_width)
  size_t bytes = 0;

  static constexpr int64_t kMostSlots = 32;

  static ChunkSpan Of(const GatedDeltaNetParams& p, int32_t key_width, int64_t first,
                      std::byte* workspace) {
    ChunkSpan span;
    span.first = first;
    span.count = std::min(kMostSlots, p.t / kDeltaChunk - first);
    span.key_width = key_width;
    span.value_width = (p.v_dim + kSliceRows - 1) / kSliceRows * kSliceRows;
    const auto take = [&](auto** array, int64_t elements) {
      *array = reinterpret_cast<std::remove_reference_t<decltype(*array)>>(workspace + span.bytes);
      span.bytes += static_cast<size_t>(elements) * sizeof(**array);
    };
    const int64_t keys = span.count * p.k_heads * kDeltaChunk;
    const int64_t values = span.count * p.v_heads * kDeltaChunk;
    take(&span.keys, keys * 2 * key_width);
    take(&span.values, values * span.value_width);
    take(&span.inverses, span.count * p.v_heads);
    take(&span.scores, span.count * p.v_heads);
    take(&span.factors, values);
    take(&span.reads, values);
    take(&span.scales, keys);
    take(&span.gates, values);
    take(&span.o, values * span.value_width);
    return span;
  }
};

// The chunk of a slot.
struct ChunkRows {
  bool exists = false;
  int64_t first = 0;   // row of the step
  int64_t offset = 0;  // of the sequence's tokens in the step
  StepSequence sequence;

  __device__ static ChunkRows At(const GatedDeltaNetParams& p, int64_t slot) {
    ChunkRows chunk;
    const int64_t last = slot * kDeltaChunk + kDeltaChunk - 1;
    const int64_t b = SequenceOfRow(p.sequences, last);
    if (b == p.sequences.count) return chunk;
    chunk.sequence = StepSequence::At(p.sequences, b);
    chunk.offset = (last - chunk.sequence.first) / kDeltaChunk * kDeltaChunk;
    chunk.first = chunk.sequence.first + chunk.offset;
    chunk.exists = chunk.offset < p.chunks.tokens[b];
    return chunk;
  }
};

}  // namespace nibble::kernels::cuda
