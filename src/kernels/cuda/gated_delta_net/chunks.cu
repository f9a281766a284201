#include "kernels/cuda/gated_delta_net/chunks.h"

#include <algorithm>

#include "kernels/cuda/gated_delta_net/chunk_span.cuh"
#include "kernels/cuda/gated_delta_net/delta_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/ldmatrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
static_assert(kChunkBlocks == kWarps);

// Two BF16 each whose sum is nearly a, nearly b.
struct SplitPair {
  uint32_t hi, lo;

  __device__ SplitPair(float a, float b) {
    hi = ptx::PackBf16(a, b);
    lo = ptx::PackBf16(a - ptx::FirstBf16(hi), b - ptx::SecondBf16(hi));
  }
};

// Columns 16 of two neighbouring accumulator tiles as the A fragment of a product over them.
struct SplitFragment {
  uint32_t hi[4], lo[4];

  __device__ __forceinline__ SplitFragment(const float (&left)[4], const float (&right)[4]) {
    const SplitPair pairs[4] = {
        {left[0], left[1]}, {left[2], left[3]}, {right[0], right[1]}, {right[2], right[3]}};
#pragma unroll
    for (int i = 0; i < 4; ++i) hi[i] = pairs[i].hi, lo[i] = pairs[i].lo;
  }
};

__device__ __forceinline__ uint4 Vector(const uint32_t (&x)[4]) {
  return make_uint4(x[0], x[1], x[2], x[3]);
}

// ---- Convolutions, unit scales, gates ----

constexpr int kPrepareTokens = 8;  // of a warp
static_assert(kDeltaChunk % kPrepareTokens == 0);

// A warp takes kPrepareTokens tokens of one key head, or of up to 128 channels of a value head.
template <int kConvWidth>
__global__ void __launch_bounds__(kThreads)
    PrepareKernel(const __grid_constant__ GatedDeltaNetParams p,
                  const __grid_constant__ CausalConv conv, const __grid_constant__ ChunkSpan span,
                  int value_parts) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int job = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int64_t slot = blockIdx.y / (kDeltaChunk / kPrepareTokens);
  const int begin = static_cast<int>(blockIdx.y) % (kDeltaChunk / kPrepareTokens) * kPrepareTokens;
  const ChunkRows chunk = ChunkRows::At(p, span.first + slot);
  if (!chunk.exists) return;
  const int64_t key_channels = int64_t{p.k_heads} * p.k_dim;

  if (job < p.k_heads) {
    const int column = 4 * lane, valid = max(0, min(4, p.k_dim - column));
    const int64_t channel = int64_t{job} * p.k_dim + column;
    ConvChannels<kConvWidth> q(conv, channel, valid), k(conv, key_channels + channel, valid);
    q.Rewind(chunk.sequence, chunk.offset + begin);
    k.Rewind(chunk.sequence, chunk.offset + begin);
    const int heads_per_key = p.v_heads / p.k_heads;
    uint16_t* keys =
        span.keys + (slot * p.k_heads + job) * 2 * kDeltaChunk * span.key_width + column;
    uint2 q_in[kPrepareTokens], k_in[kPrepareTokens];
    q.LoadInputs(q_in);
    k.LoadInputs(k_in);
#pragma unroll
    for (int t = 0; t < kPrepareTokens; ++t) {
      const int i = begin + t;
      float q_out[4], k_out[4];
      q.Next(q_in[t], q_out);
      k.Next(k_in[t], k_out);
      const KeySums sums = {.qq = SumOverWarp(PieceDot(q_out, q_out)),
                            .kk = SumOverWarp(PieceDot(k_out, k_out)),
                            .qk = 0.0f};
      if (column < span.key_width) {
        StoreBf16x4(keys + i * span.key_width, k_out);
        StoreBf16x4(keys + (kDeltaChunk + i) * span.key_width, q_out);
      }
      const UnitScales scales = UnitScalesOf(sums, p.k_dim);
      if (lane == 0)
        span.scales[(slot * p.k_heads + job) * kDeltaChunk + i] = make_float2(scales.k, scales.q);
      for (int h = lane; h < heads_per_key; h += 32) {
        const int head = job * heads_per_key + h;
        const int64_t ba = (chunk.first + i) * p.ba_stride + head;
        const DeltaGates gates = GatesOf(p.b[ba], p.a[ba], expf(p.a_log[head]), p.dt_bias[head]);
        span.gates[(slot * p.v_heads + head) * kDeltaChunk + i] =
            make_float2(gates.decay, gates.beta);
      }
    }
    return;
  }

  const int head = (job - p.k_heads) / value_parts;
  const int row = (job - p.k_heads) % value_parts * 128 + 4 * lane;
  if (head >= p.v_heads || row >= span.value_width) return;
  ConvChannels<kConvWidth> v(conv, 2 * key_channels + int64_t{head} * p.v_dim + row,
                             max(0, min(4, p.v_dim - row)));
  v.Rewind(chunk.sequence, chunk.offset + begin);
  uint16_t* values = span.values + (slot * p.v_heads + head) * kDeltaChunk * span.value_width + row;
  uint2 in[kPrepareTokens];
  v.LoadInputs(in);
#pragma unroll
  for (int t = 0; t < kPrepareTokens; ++t) {
    float out[4];
    v.Next(in[t], out);
    StoreBf16x4(values + (begin + t) * span.value_width, out);
  }
}

// ---- M and P of every chunk ----

constexpr int kHeadsAtOnce = 2;  // two warps each

template <int kWidth>
union MatricesShared {
  struct {
    uint16_t rows[2][kDeltaChunk][kWidth + 8];  // k, q
  } tiles;
  struct {
    // By head: the decay from after token j to token i; later M.
    float decays[kHeadsAtOnce][kDeltaChunk][kDeltaChunk + 1];
    float columns[kHeadsAtOnce][kDeltaChunk][kDeltaChunk + 4];  // of A: [j][i]
  } heads;
};

// Block (i, j) of a lower triangular matrix whose row r, column c is value(r, c), by a warp.
template <typename Value>
__device__ __forceinline__ void StoreBlock(ChunkMatrix* matrix, int i, int j, const Value& value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = 16 * i + lane / 4, column = 16 * j + 2 * (lane % 4);
  const auto pair = [&](int down, int right) {
    return SplitPair(value(row + down, column + right), value(row + down, column + right + 1));
  };
  const SplitPair pairs[4] = {pair(0, 0), pair(0, 8), pair(8, 0), pair(8, 8)};
  matrix->blocks[LowerBlock(i, j)][0][lane] =
      make_uint4(pairs[0].hi, pairs[1].hi, pairs[2].hi, pairs[3].hi);
  matrix->blocks[LowerBlock(i, j)][1][lane] =
      make_uint4(pairs[0].lo, pairs[1].lo, pairs[2].lo, pairs[3].lo);
}

// Column c of (I + A)^-1 by forward substitution, 16 rows at a time; by a thread of two warps.
__device__ __forceinline__ void InvertColumn(const float (&a)[kDeltaChunk][kDeltaChunk + 4], int c,
                                             float (&inverse)[kDeltaChunk][kDeltaChunk + 1]) {
#pragma unroll 1
  for (int first = 0; first < kDeltaChunk; first += 16) {
    float x[16];
#pragma unroll
    for (int r = 0; r < 16; ++r) x[r] = first + r == c ? 1.0f : 0.0f;
    const auto subtract = [&](int j, float x_j, int from) {
      const float4* column = reinterpret_cast<const float4*>(&a[j][first]);
#pragma unroll
      for (int r = 0; r < 16; r += 4) {
        if (r + 3 < from) continue;
        const float4 part = column[r / 4];
        if (r >= from) x[r] = fmaf(-part.x, x_j, x[r]);
        if (r + 1 >= from) x[r + 1] = fmaf(-part.y, x_j, x[r + 1]);
        if (r + 2 >= from) x[r + 2] = fmaf(-part.z, x_j, x[r + 2]);
        if (r + 3 >= from) x[r + 3] = fmaf(-part.w, x_j, x[r + 3]);
      }
    };
#pragma unroll 4
    for (int j = c / 32 * 32; j < first; ++j) subtract(j, inverse[j][c], 0);
#pragma unroll
    for (int r = 0; r < 16; ++r) subtract(first + r, x[r], r + 1);
#pragma unroll
    for (int r = 0; r < 16; ++r) inverse[first + r][c] = x[r];
  }
}

// CTA x: a key head; y: a slot. Products of keys once, then the key head's value heads.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    MatricesKernel(const __grid_constant__ GatedDeltaNetParams p,
                   const __grid_constant__ ChunkSpan span) {
  extern __shared__ float4 shared_memory[];
  auto& shared = *reinterpret_cast<MatricesShared<kWidth>*>(shared_memory);
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
  constexpr int kPieces = kWidth / 8;
  const auto* from =
      reinterpret_cast<const uint4*>(span.keys + key * 2 * kDeltaChunk * int64_t{kWidth});
  for (int i = thread; i < 2 * kDeltaChunk * kPieces; i += kThreads)
    *reinterpret_cast<uint4*>(&shared.tiles.rows[i / (kDeltaChunk * kPieces)]
                                                [i / kPieces % kDeltaChunk][i % kPieces * 8]) =
        from[i];
  if (thread < kDeltaChunk) scales[thread] = span.scales[key * kDeltaChunk + thread];
  __syncthreads();

  // Rows 16 warp.. of K Kᵀ and Q Kᵀ, blocks of 16 columns up to the diagonal.
  float kk[kChunkBlocks][2][4] = {}, qk[kChunkBlocks][2][4] = {};
  const int matrix = lane / 8, matrix_row = lane % 8;
  const int a_row = 16 * warp + matrix_row + 8 * (matrix & 1), a_column = 8 * (matrix >> 1);
  const int b_row = matrix_row + 8 * (matrix >> 1), b_column = 8 * (matrix & 1);
#pragma unroll
  for (int d = 0; d < kWidth; d += 16) {
    uint32_t k[4], q[4];
    ptx::LoadMatrices(k, ptx::SharedAddress(&shared.tiles.rows[0][a_row][d + a_column]));
    ptx::LoadMatrices(q, ptx::SharedAddress(&shared.tiles.rows[1][a_row][d + a_column]));
#pragma unroll
    for (int j = 0; j < kChunkBlocks; ++j) {
      if (j > warp) continue;
      uint32_t b[4];
      ptx::LoadMatrices(b, ptx::SharedAddress(&shared.tiles.rows[0][16 * j + b_row][d + b_column]));
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        ptx::MmaBf16(kk[j][n], k, b[2 * n], b[2 * n + 1]);
        ptx::MmaBf16(qk[j][n], q, b[2 * n], b[2 * n + 1]);
      }
    }
  }

  const int mine = thread / kDeltaChunk, token = thread % kDeltaChunk;  // head of the two, column
#pragma unroll 1
  for (int h = 0; h < heads_per_key; h += kHeadsAtOnce) {
    const int heads = min(kHeadsAtOnce, heads_per_key - h);
    const int64_t first_head = slot * p.v_heads + key_head * heads_per_key + h;
    const int64_t at = (first_head + mine) * kDeltaChunk + token;
    if (mine < heads) gates[mine][token] = span.gates[at];
    __syncthreads();  // and the tiles, or M of the heads before, have been read
    if (mine < heads) {
      float decay = 1.0f;
      shared.heads.decays[mine][token][token] = decay;
#pragma unroll 4
      for (int i = 1; i < kDeltaChunk; ++i) {
        if (i <= token) continue;
        decay *= gates[mine][i].x;
        shared.heads.decays[mine][i][token] = decay;
      }
    }
    __syncthreads();
    if (mine < heads) {
      const auto& decays = shared.heads.decays[mine];
      const float first = gates[mine][0].x, since_start = first * decays[token][0];
      span.factors[at] = {.beta = gates[mine][token].y,
                          .recall = since_start * scales[token].x,
                          .keep = decays[kDeltaChunk - 1][token] * scales[token].x,
                          .total = first * decays[kDeltaChunk - 1][0]};
      span.reads[at] = since_start * scales[token].y;
    }
#pragma unroll 1
    for (int other = 0; other < heads; ++other) {
      const auto& decays = shared.heads.decays[other];
#pragma unroll
      for (int j = 0; j < kChunkBlocks; ++j) {
        if (j > warp) continue;
        const auto decay_of = [&](int row, int column) {
          return column <= row ? decays[row][column] * scales[column].x : 0.0f;
        };
        // The fragments of P are those of the product.
        float scaled[2][4];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = 16 * warp + lane / 4 + 8 * (e / 2);
            const int column = 16 * j + 8 * n + 2 * (lane % 4) + e % 2;
            const float decay = decay_of(row, column);
            shared.heads.columns[other][column][row] =
                column < row ? gates[other][row].y * scales[row].x * decay * kk[j][n][e] : 0.0f;
            scaled[n][e] = scales[row].y * decay * qk[j][n][e];
          }
        }
        const SplitPair pairs[4] = {{scaled[0][0], scaled[0][1]},
                                    {scaled[1][0], scaled[1][1]},
                                    {scaled[0][2], scaled[0][3]},
                                    {scaled[1][2], scaled[1][3]}};
        auto& block = span.scores[first_head + other].blocks[LowerBlock(warp, j)];
        block[0][lane] = make_uint4(pairs[0].hi, pairs[1].hi, pairs[2].hi, pairs[3].hi);
        block[1][lane] = make_uint4(pairs[0].lo, pairs[1].lo, pairs[2].lo, pairs[3].lo);
      }
    }
    __syncthreads();
    if (mine < heads) InvertColumn(shared.heads.columns[mine], token, shared.heads.decays[mine]);
    __syncthreads();
    for (int other = 0; other < heads; ++other) {
      const auto& inverse = shared.heads.decays[other];
      for (int j = 0; j <= warp; ++j)
        StoreBlock(&span.inverses[first_head + other], warp, j,
                   [&](int row, int column) { return inverse[row][column]; });
    }
  }
}

// ---- The recurrence over chunks ----

constexpr int kStateWarps = 2;  // of 16 rows each; as many others compute the outputs
constexpr int kTileRow = 8;     // elements that ldmatrix reads at once

// (64, kColumns) in blocks of 16 x 16, each four matrices of 8 x 8 in a row: rows 0..7, columns
// 0..7; columns 8..15; then rows 8..15.
template <int kColumns>
struct Tile {
  uint16_t elements[kDeltaChunk * kColumns];

  __device__ __forceinline__ uint32_t Block(int row_block, int column_block, int lane) const {
    return ptx::SharedAddress(elements) +
           ((row_block * (kColumns / 16) + column_block) * 32 + lane) * 16;
  }

  // From rows `stride` elements apart; by all threads.
  __device__ __forceinline__ void Copy(const uint16_t* from, int stride) {
    constexpr int kPieces = kColumns / kTileRow;
#pragma unroll
    for (int i = 0; i < kDeltaChunk * kPieces / kThreads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = at % 8 + at / (8 * kPieces) * 8, piece = at / 8 % kPieces;
      const int matrix = row / 8 % 2 * 2 + piece % 2;
      const int block = row / 16 * (kColumns / 16) + piece / 2;
      ptx::CopyAsync16(elements + ((block * 4 + matrix) * 8 + row % 8) * kTileRow,
                       from + row * stride + piece * kTileRow);
    }
  }
};

// What the warps of a state read, of a chunk.
template <int kWidth>
struct StateOperands {
  Tile<kWidth> keys;
  Tile<kSliceRows> values;
  ChunkMatrix inverse;
  ChunkFactors factors[kDeltaChunk];
};

// What the warps of outputs read, a chunk later.
template <int kWidth>
struct OutputOperands {
  Tile<kWidth> queries;
  ChunkMatrix scores;
  float reads[kDeltaChunk];
};

// What a warp of a state tells its warp of outputs: A fragments, hi and lo.
template <int kWidth>
struct Told {
  uint4 state[kWidth / 16][2][32];
  uint4 deltas[kChunkBlocks][2][32];
};

template <int kWidth>
struct RecurrenceShared {
  StateOperands<kWidth> state[2];
  OutputOperands<kWidth> output[2];
  Told<kWidth> told[2][kStateWarps];
};

template <size_t kBytes>
__device__ __forceinline__ void CopyBytes(void* shared, const void* from) {
  static_assert(kBytes % 16 == 0);
  for (size_t i = threadIdx.x * 16; i < kBytes; i += kThreads * 16)
    ptx::CopyAsync16(static_cast<std::byte*>(shared) + i, static_cast<const std::byte*>(from) + i);
}

// products (16, 64) += fragment (16, 16) (hi + lo) times columns of four blocks of a tile.
__device__ __forceinline__ void MultiplyBlocks(float (&products)[2 * kChunkBlocks][4],
                                               const uint32_t (&hi)[4], const uint32_t (&lo)[4],
                                               const uint32_t (&blocks)[kChunkBlocks][4]) {
#pragma unroll
  for (int n = 0; n < 2 * kChunkBlocks; ++n)
    ptx::MmaBf16(products[n], hi, blocks[n / 2][n % 2 * 2], blocks[n / 2][n % 2 * 2 + 1]);
#pragma unroll
  for (int n = 0; n < 2 * kChunkBlocks; ++n)
    ptx::MmaBf16(products[n], lo, blocks[n / 2][n % 2 * 2], blocks[n / 2][n % 2 * 2 + 1]);
}

// products (16, 64) += x (16, 64) times the transposed lower triangular matrix. By diagonals of
// blocks, so that neighbouring instructions add to different sums.
__device__ __forceinline__ void MultiplyLower(float (&products)[2 * kChunkBlocks][4],
                                              const uint32_t (&hi)[kChunkBlocks][4],
                                              const uint32_t (&lo)[kChunkBlocks][4],
                                              const ChunkMatrix& matrix, int lane) {
#pragma unroll
  for (int below = 0; below < kChunkBlocks; ++below) {
    uint4 high[kChunkBlocks], low[kChunkBlocks];
#pragma unroll
    for (int i = below; i < kChunkBlocks; ++i) {
      high[i] = matrix.blocks[LowerBlock(i, i - below)][0][lane];
      low[i] = matrix.blocks[LowerBlock(i, i - below)][1][lane];
    }
#pragma unroll
    for (int part = 0; part < 3; ++part) {
#pragma unroll
      for (int i = below; i < kChunkBlocks; ++i) {
        const auto& x = part == 1 ? lo[i - below] : hi[i - below];
        const uint4& b = part == 2 ? low[i] : high[i];
        ptx::MmaBf16(products[2 * i], x, b.x, b.y);
        ptx::MmaBf16(products[2 * i + 1], x, b.z, b.w);
      }
    }
  }
}

// 16 rows of a state, by a warp, as accumulators of mma.cuh: tile n holds columns 8 n .. 8 n + 7.
template <int kWidth>
class StateRows {
 public:
  // `state`: row 0 of these; `rows` of them exist, with k_dim columns.
  __device__ void Load(const float* state, int rows, int k_dim, int lane) {
    ForEach(rows, k_dim, lane, [&](float& x, int offset) { x = state[offset]; });
  }
  __device__ void Store(float* state, int rows, int k_dim, int lane) {
    ForEach(rows, k_dim, lane, [&](float& x, int offset) { state[offset] = x; });
  }

  // Through a chunk: column_block of the values' tile are these rows.
  __device__ void Advance(const StateOperands<kWidth>& x, int column_block, int lane,
                          Told<kWidth>* told) {
    float products[2 * kChunkBlocks][4] = {};  // S Kᵀ, then R, (16, 64)
#pragma unroll
    for (int d = 0; d < kWidth / 16; ++d) {
      const SplitFragment s(s_[2 * d], s_[2 * d + 1]);
      told->state[d][0][lane] = Vector(s.hi);
      told->state[d][1][lane] = Vector(s.lo);
      uint32_t keys[kChunkBlocks][4];
#pragma unroll
      for (int i = 0; i < kChunkBlocks; ++i) ptx::LoadMatrices(keys[i], x.keys.Block(i, d, lane));
      MultiplyBlocks(products, s.hi, s.lo, keys);
    }
#pragma unroll
    for (int j = 0; j < kChunkBlocks; ++j) {
      uint32_t values[4];
      ptx::LoadMatricesTransposed(values, x.values.Block(j, column_block, lane));
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int token = 16 * j + 8 * n + 2 * (lane % 4);
        const ChunkFactors left = x.factors[token], right = x.factors[token + 1];
        float(&r)[4] = products[2 * j + n];
        r[0] = left.beta * fmaf(-left.recall, r[0], ptx::FirstBf16(values[2 * n]));
        r[1] = right.beta * fmaf(-right.recall, r[1], ptx::SecondBf16(values[2 * n]));
        r[2] = left.beta * fmaf(-left.recall, r[2], ptx::FirstBf16(values[2 * n + 1]));
        r[3] = right.beta * fmaf(-right.recall, r[3], ptx::SecondBf16(values[2 * n + 1]));
      }
    }
    uint32_t hi[kChunkBlocks][4], lo[kChunkBlocks][4];
#pragma unroll
    for (int j = 0; j < kChunkBlocks; ++j) {
      const SplitFragment r(products[2 * j], products[2 * j + 1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) hi[j][i] = r.hi[i], lo[j][i] = r.lo[i];
    }
    float deltas[2 * kChunkBlocks][4] = {};  // (16, 64)
    MultiplyLower(deltas, hi, lo, x.inverse, lane);
    const float total = x.factors[0].total;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s_[n][e] *= total;
    }
#pragma unroll
    for (int j = 0; j < kChunkBlocks; ++j) {
      const SplitFragment delta(deltas[2 * j], deltas[2 * j + 1]);
      told->deltas[j][0][lane] = Vector(delta.hi);
      told->deltas[j][1][lane] = Vector(delta.lo);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int token = 16 * j + 8 * n + 2 * (lane % 4);
        const float left = x.factors[token].keep, right = x.factors[token + 1].keep;
        float(&d)[4] = deltas[2 * j + n];
        d[0] *= left, d[1] *= right, d[2] *= left, d[3] *= right;
      }
      const SplitFragment kept(deltas[2 * j], deltas[2 * j + 1]);
      Learn(kept, x.keys, j, lane);
    }
  }

 private:
  // += 16 tokens' deltas times their keys. Four blocks of columns at a time, so that sums do not
  // wait for each other.
  __device__ __forceinline__ void Learn(const SplitFragment& kept, const Tile<kWidth>& keys, int j,
                                        int lane) {
    constexpr int kAtOnce = kWidth / 16 < 4 ? kWidth / 16 : 4;
#pragma unroll
    for (int first = 0; first < kWidth / 16; first += kAtOnce) {
      uint32_t blocks[kAtOnce][4];
#pragma unroll
      for (int d = 0; d < kAtOnce; ++d)
        ptx::LoadMatricesTransposed(blocks[d], keys.Block(j, first + d, lane));
#pragma unroll
      for (int part = 0; part < 2; ++part) {
#pragma unroll
        for (int n = 0; n < 2 * kAtOnce; ++n)
          ptx::MmaBf16(s_[2 * first + n], part == 0 ? kept.hi : kept.lo, blocks[n / 2][n % 2],
                       blocks[n / 2][2 + n % 2]);
      }
    }
  }

  template <typename Visit>
  __device__ void ForEach(int rows, int k_dim, int lane, const Visit& visit) {
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, column = 8 * n + 2 * (lane % 4) + e % 2;
        if (row < rows && column < k_dim) visit(s_[n][e], row * k_dim + column);
      }
    }
  }

  float s_[kWidth / 8][4] = {};
};

// Outputs of 16 rows of a state at a chunk's tokens. `o`: token 0, row 0 of these; tokens are
// `stride` apart.
template <int kWidth>
__device__ __forceinline__ void ReadState(const OutputOperands<kWidth>& x, const Told<kWidth>& told,
                                          int lane, float* o, int stride) {
  float products[2 * kChunkBlocks][4] = {};  // (16, 64)
  const auto fragment = [](const uint4& v, uint32_t(&to)[4]) {
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  };
#pragma unroll
  for (int d = 0; d < kWidth / 16; ++d) {
    uint32_t hi[4], lo[4], queries[kChunkBlocks][4];
    fragment(told.state[d][0][lane], hi);
    fragment(told.state[d][1][lane], lo);
#pragma unroll
    for (int i = 0; i < kChunkBlocks; ++i)
      ptx::LoadMatrices(queries[i], x.queries.Block(i, d, lane));
    MultiplyBlocks(products, hi, lo, queries);
  }
#pragma unroll
  for (int n = 0; n < 2 * kChunkBlocks; ++n) {
    const int token = 8 * n + 2 * (lane % 4);
    const float left = x.reads[token], right = x.reads[token + 1];
    products[n][0] *= left, products[n][1] *= right;
    products[n][2] *= left, products[n][3] *= right;
  }
  uint32_t hi[kChunkBlocks][4], lo[kChunkBlocks][4];
#pragma unroll
  for (int j = 0; j < kChunkBlocks; ++j) {
    fragment(told.deltas[j][0][lane], hi[j]);
    fragment(told.deltas[j][1][lane], lo[j]);
  }
  MultiplyLower(products, hi, lo, x.scores, lane);
#pragma unroll
  for (int n = 0; n < 2 * kChunkBlocks; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      o[(8 * n + 2 * (lane % 4) + e % 2) * stride + lane / 4 + e / 2 * 8] = products[n][e];
  }
}

// The n-th sequence that has chunks.
__device__ __forceinline__ int64_t SequenceWithChunks(const GatedDeltaNetParams& p, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t first = 0; first < p.sequences.count; first += 32) {
    const int64_t b = first + lane;
    const uint32_t with =
        __ballot_sync(0xFFFFFFFFu, b < p.sequences.count && p.chunks.tokens[b] > 0);
    const int count = __popc(with);
    if (n < count) return first + __fns(with, 0, n + 1);
    n -= count;
  }
  return -1;
}

// CTA x: kSliceRows rows of a value head's state; y: of the sequences that have chunks.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    RecurrenceKernel(const __grid_constant__ GatedDeltaNetParams p,
                     const __grid_constant__ CausalConv conv,
                     const __grid_constant__ ChunkSpan span) {
  extern __shared__ float4 shared_memory[];
  auto& shared = *reinterpret_cast<RecurrenceShared<kWidth>*>(shared_memory);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int column_block = thread / 32 % kStateWarps;
  const bool of_state = thread / 32 < kStateWarps;
  const int slices = span.value_width / kSliceRows;
  const int head = static_cast<int>(blockIdx.x) / slices;
  const int slice_row = static_cast<int>(blockIdx.x) % slices * kSliceRows;
  const int key_head = head / (p.v_heads / p.k_heads);

  const int64_t b = SequenceWithChunks(p, static_cast<int>(blockIdx.y));
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if (b < 0) return;
  StepSequence s = StepSequence::At(p.sequences, b);
  s.count = p.chunks.tokens[b];
  const int64_t all = s.count / kDeltaChunk, first_slot = s.first / kDeltaChunk;
  const int64_t begin = max(int64_t{0}, span.first - first_slot);
  const int64_t end = min(all, span.first + span.count - first_slot);
  if (begin >= end) return;

  const auto copy_state_operands = [&](int64_t chunk) {
    StateOperands<kWidth>& to = shared.state[chunk % 2];
    const int64_t slot = first_slot + chunk - span.first, at = slot * p.v_heads + head;
    to.keys.Copy(span.keys + (slot * p.k_heads + key_head) * 2 * kDeltaChunk * int64_t{kWidth},
                 kWidth);
    to.values.Copy(span.values + at * kDeltaChunk * span.value_width + slice_row, span.value_width);
    CopyBytes<sizeof(ChunkMatrix)>(&to.inverse, &span.inverses[at]);
    CopyBytes<sizeof(to.factors)>(to.factors, span.factors + at * kDeltaChunk);
  };
  const auto copy_output_operands = [&](int64_t chunk) {
    OutputOperands<kWidth>& to = shared.output[chunk % 2];
    const int64_t slot = first_slot + chunk - span.first, at = slot * p.v_heads + head;
    to.queries.Copy(
        span.keys + ((slot * p.k_heads + key_head) * 2 + 1) * kDeltaChunk * int64_t{kWidth},
        kWidth);
    CopyBytes<sizeof(ChunkMatrix)>(&to.scores, &span.scores[at]);
    CopyBytes<sizeof(to.reads)>(to.reads, span.reads + at * kDeltaChunk);
  };
  copy_state_operands(begin);
  ptx::CommitCopies();

  const int row = slice_row + 16 * column_block;
  float* state = StateAt<float>(p.recurrent_state, s) + (int64_t{head} * p.v_dim + row) * p.k_dim;
  StateRows<kWidth> rows;
  if (of_state && !(s.starts && begin == 0)) rows.Load(state, p.v_dim - row, p.k_dim, lane);
  // Outputs follow a chunk behind.
  for (int64_t chunk = begin; chunk <= end; ++chunk) {
    ptx::WaitForCopies<0>();
    __syncthreads();
    if (chunk + 1 < end) copy_state_operands(chunk + 1);
    if (chunk < end) copy_output_operands(chunk);
    ptx::CommitCopies();
    if (of_state) {
      if (chunk < end)
        rows.Advance(shared.state[chunk % 2], column_block, lane,
                     &shared.told[chunk % 2][column_block]);
    } else if (chunk > begin) {
      const int64_t slot = first_slot + chunk - 1 - span.first;
      ReadState(shared.output[(chunk - 1) % 2], shared.told[(chunk - 1) % 2][column_block], lane,
                span.o + (slot * p.v_heads + head) * kDeltaChunk * span.value_width + row,
                span.value_width);
    }
  }
  if (of_state) rows.Store(state, p.v_dim - row, p.k_dim, lane);

  if (end < all) return;
  const int64_t key_channels = int64_t{p.k_heads} * p.k_dim;
  if (thread < kSliceRows && slice_row + thread < p.v_dim)
    MoveWindow(conv, s, 2 * key_channels + int64_t{head} * p.v_dim + slice_row + thread);
  if (head % (p.v_heads / p.k_heads) != 0 || slice_row != 0) return;
  for (int c = thread; c < p.k_dim; c += kThreads) {
    MoveWindow(conv, s, int64_t{key_head} * p.k_dim + c);
    MoveWindow(conv, s, key_channels + int64_t{key_head} * p.k_dim + c);
  }
}

// ---- The gated norm ----

constexpr int kNormTokens = 8;  // of a CTA, a warp each

// CTA x: tokens of a chunk; y: a value head; z: a slot.
__global__ void __launch_bounds__(32 * kNormTokens)
    NormKernel(const __grid_constant__ GatedDeltaNetParams p,
               const __grid_constant__ ChunkSpan span, bool vectors) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int i = static_cast<int>(blockIdx.x) * kNormTokens + static_cast<int>(threadIdx.x) / 32;
  const int head = static_cast<int>(blockIdx.y);
  const ChunkRows chunk = ChunkRows::At(p, span.first + blockIdx.z);
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if (!chunk.exists) return;
  const int64_t token = chunk.first + i;
  const float* o =
      span.o + ((int64_t{blockIdx.z} * p.v_heads + head) * kDeltaChunk + i) * span.value_width;
  const uint16_t* z = p.z + token * p.z_stride + int64_t{head} * p.v_dim;
  uint16_t* out = p.out + (token * p.v_heads + head) * p.v_dim;
  if (vectors) {  // v_dim is 128
    const int c = 4 * lane;
    const float4 x = *reinterpret_cast<const float4*>(o + c);
    const uint2 gates = *reinterpret_cast<const uint2*>(z + c);
    const float4 weight = *reinterpret_cast<const float4*>(p.norm_weight + c);
    const float squares = SumOverWarp(fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, x.x * x.x))));
    const float inverse = rsqrtf(squares * (1.0f / 128) + p.eps);
    const auto gated = [&](float value, float of_norm, float gate) {
      return GatedOutput(value, inverse, of_norm, gate, p.sigmoid_gate);
    };
    *reinterpret_cast<uint2*>(out + c) =
        make_uint2(ptx::PackBf16(gated(x.x, weight.x, ptx::FirstBf16(gates.x)),
                                 gated(x.y, weight.y, ptx::SecondBf16(gates.x))),
                   ptx::PackBf16(gated(x.z, weight.z, ptx::FirstBf16(gates.y)),
                                 gated(x.w, weight.w, ptx::SecondBf16(gates.y))));
    return;
  }
  const float inverse = InverseRms(p.v_dim, p.eps, [&](int c) { return o[c]; });
  for (int c = lane; c < p.v_dim; c += 32)
    out[c] = Bf16FromFloat(
        GatedOutput(o[c], inverse, p.norm_weight[c], Bf16ToFloat(z[c]), p.sigmoid_gate));
}

// ---- Launches ----

constexpr int kMostPieces = 4;  // of keys

bool NormVectors(const GatedDeltaNetParams& p) {
  const auto all = reinterpret_cast<uintptr_t>(p.z) | reinterpret_cast<uintptr_t>(p.out) |
                   reinterpret_cast<uintptr_t>(p.norm_weight) / 2 |
                   static_cast<uintptr_t>(2 * p.z_stride);
  return p.v_dim == 128 && all % 8 == 0;
}

template <int kWidth>
void Launch(const GatedDeltaNetParams& p, const CausalConv& conv, const ChunkSpan& span,
            cudaStream_t stream) {
  const int value_parts = (p.v_dim + 127) / 128;
  const int jobs = p.k_heads + p.v_heads * value_parts;
  const auto slots = static_cast<unsigned>(span.count);
  const auto prepare = conv.width == 4 ? PrepareKernel<4> : PrepareKernel<0>;
  LaunchPdl(prepare, dim3((jobs + kWarps - 1) / kWarps, slots * (kDeltaChunk / kPrepareTokens)),
            dim3(kThreads), 0, stream, p, conv, span, value_parts);
  LaunchPdl(MatricesKernel<kWidth>, dim3(static_cast<unsigned>(p.k_heads), slots), dim3(kThreads),
            sizeof(MatricesShared<kWidth>), stream, p, span);
  LaunchPdl(RecurrenceKernel<kWidth>,
            dim3(static_cast<unsigned>(p.v_heads * (span.value_width / kSliceRows)),
                 static_cast<unsigned>(p.chunks.sequences)),
            dim3(kThreads), sizeof(RecurrenceShared<kWidth>), stream, p, conv, span);
  LaunchPdl(NormKernel, dim3(kDeltaChunk / kNormTokens, static_cast<unsigned>(p.v_heads), slots),
            dim3(32 * kNormTokens), 0, stream, p, span, NormVectors(p));
}

int32_t KeyWidth(const GatedDeltaNetParams& p) { return kRowWidth<1> * PiecesOf(p.k_dim); }

}  // namespace

bool HasDeltaChunks() {
  return CurrentDevice().shared_memory_per_block >=
         static_cast<int>(sizeof(RecurrenceShared<kRowWidth<kMostPieces>>));
}

bool TakesDeltaChunks(const GatedDeltaNetParams& params) {
  return params.chunks.total > 0 && PiecesOf(params.k_dim) <= kMostPieces && HasDeltaChunks();
}

size_t DeltaChunksWorkspace(const GatedDeltaNetParams& sizes) {
  if (PiecesOf(sizes.k_dim) > kMostPieces) return 0;
  return ChunkSpan::Of(sizes, KeyWidth(sizes), 0, nullptr).bytes;
}

void RunDeltaChunks(const OpContext& context, const GatedDeltaNetParams& params,
                    const CausalConv& conv) {
  for (int64_t slot = 0; slot < params.t / kDeltaChunk; slot += ChunkSpan::kMostSlots) {
    const ChunkSpan span = ChunkSpan::Of(params, KeyWidth(params), slot, context.workspace);
    switch (PiecesOf(params.k_dim)) {
      case 1:
        Launch<kRowWidth<1>>(params, conv, span, StreamOf(context));
        break;
      case 2:
        Launch<kRowWidth<2>>(params, conv, span, StreamOf(context));
        break;
      default:
        Launch<kRowWidth<kMostPieces>>(params, conv, span, StreamOf(context));
    }
  }
}

}  // namespace nibble::kernels::cuda
