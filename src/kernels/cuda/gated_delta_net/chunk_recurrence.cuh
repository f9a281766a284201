// The recurrence over chunks: a CTA takes kSliceRows rows of a value head's state through a
// sequence's chunks. Four warps keep the state as accumulators of mma.cuh, 16 rows and half of the
// columns each; four follow a chunk behind and compute outputs, for 16 rows and half of the tokens.
//
// A state's warps tell each other sums over their halves of the columns, and what half of the
// tokens add; and they tell the warps of outputs both state and deltas, as fragments. Operands of
// chunks come by bulk copies, one chunk ahead (sm_90, and its shared memory).
#pragma once

#include "kernels/cuda/gated_delta_net/chunk_span.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/ldmatrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/recurrent/causal_conv.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kRecurrenceThreads = 256;
inline constexpr int kRowBlocks = kSliceRows / 16;
inline constexpr int kHalves = 2;
static_assert(kRecurrenceThreads / 32 == 2 * kRowBlocks * kHalves);

// What the warps of a state read, of a chunk.
template <int kWidth>
struct StateOperands {
  ChunkTile<kWidth> keys;
  ChunkTile<kSliceRows> values;
  ChunkMatrix inverse;
  ChunkFactors factors[kDeltaChunk];
};

// What the warps of outputs read, a chunk later.
template <int kWidth>
struct OutputOperands {
  ChunkTile<kWidth> queries;
  ChunkMatrix scores;
  float reads[kDeltaChunk];
};

// A fragment of A, hi and lo, by lanes.
using SharedFragment = uint4[2][32];

// What is told of 16 rows of a state.
template <int kWidth>
struct ToldRows {
  SharedFragment state[kWidth / 16];
  SharedFragment deltas[kChunkBlocks];
};

// Of one warp of a state for the other: accumulators of S Kᵀ; then fragments of deltas.
union Exchange {
  float4 sums[2 * kChunkBlocks][32];
  SharedFragment kept[2];
};

template <int kWidth>
struct RecurrenceShared {
  StateOperands<kWidth> state[2];
  OutputOperands<kWidth> output[2];
  ToldRows<kWidth> told[2][kRowBlocks];
  Exchange exchange[kRowBlocks][kHalves];
  uint64_t state_came[2];
  uint64_t output_came[2];
};

#if __CUDA_ARCH__ >= 900

// Columns 16 of two neighbouring accumulator tiles as the A fragment of a product over them.
struct SplitFragment {
  uint32_t hi[4], lo[4];

  SplitFragment() = default;
  __device__ __forceinline__ SplitFragment(const float (&left)[4], const float (&right)[4]) {
    const SplitPair pairs[4] = {
        {left[0], left[1]}, {left[2], left[3]}, {right[0], right[1]}, {right[2], right[3]}};
#pragma unroll
    for (int i = 0; i < 4; ++i) hi[i] = pairs[i].hi, lo[i] = pairs[i].lo;
  }
  __device__ __forceinline__ void Store(SharedFragment& to, int lane) const {
    to[0][lane] = make_uint4(hi[0], hi[1], hi[2], hi[3]);
    to[1][lane] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
  }
  __device__ __forceinline__ void Load(const SharedFragment& from, int lane) {
    const uint4 a = from[0][lane], b = from[1][lane];
    hi[0] = a.x, hi[1] = a.y, hi[2] = a.z, hi[3] = a.w;
    lo[0] = b.x, lo[1] = b.y, lo[2] = b.z, lo[3] = b.w;
  }
};

template <int kColumns>
__device__ __forceinline__ uint32_t BlockOf(const ChunkTile<kColumns>& tile, int row_block,
                                            int column_block, int lane) {
  return ptx::SharedAddress(tile.elements) +
         ((row_block * (kColumns / 16) + column_block) * 32 + lane) * 16;
}

// Of the four blocks of tokens a warp's half takes two, which have five blocks of a lower triangle
// between them: 0 and 3, or 1 and 2.
struct HalfOfTokens {
  int half;

  __device__ int first() const { return half; }
  __device__ int second() const { return kChunkBlocks - 1 - half; }
};

// The five blocks of a half's tokens: (first, 0), (second, 0), (second, 1), (second, 2), and
// (first, 1) or (second, 3).
struct LowerBlocks {
  static constexpr int kCount = 5;
  uint4 high[kCount], low[kCount];

  __device__ __forceinline__ LowerBlocks(const ChunkMatrix& matrix, HalfOfTokens tokens, int lane) {
    const int blocks[kCount] = {
        LowerBlock(tokens.first(), 0), LowerBlock(tokens.second(), 0),
        LowerBlock(tokens.second(), 1), LowerBlock(tokens.second(), 2),
        tokens.half == 1 ? LowerBlock(tokens.first(), 1) : LowerBlock(tokens.second(), 3)};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      high[i] = matrix.blocks[blocks[i]][0][lane];
      low[i] = matrix.blocks[blocks[i]][1][lane];
    }
  }

  // (16, tokens) += x (16, 64) times the transposed matrix. The five products have sums of their
  // own, which are added in the end.
  __device__ __forceinline__ void Multiply(const SplitFragment (&x)[kChunkBlocks],
                                           HalfOfTokens tokens, float (&first)[2][4],
                                           float (&second)[2][4]) const {
    const bool of_first = tokens.half == 1;
    SplitFragment last;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      last.hi[i] = of_first ? x[1].hi[i] : x[3].hi[i];
      last.lo[i] = of_first ? x[1].lo[i] : x[3].lo[i];
    }
    const SplitFragment* const left[kCount] = {&x[0], &x[0], &x[1], &x[2], &last};
    float sums[kCount][2][4] = {};
#pragma unroll
    for (int part = 0; part < 3; ++part) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const auto& a = part == 1 ? left[i]->lo : left[i]->hi;
        const uint4& b = part == 2 ? low[i] : high[i];
        ptx::MmaBf16(sums[i][0], a, b.x, b.y);
        ptx::MmaBf16(sums[i][1], a, b.z, b.w);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float more = sums[4][n][e];
        first[n][e] += sums[0][n][e] + (of_first ? more : 0.0f);
        second[n][e] +=
            (sums[1][n][e] + sums[2][n][e]) + (sums[3][n][e] + (of_first ? 0.0f : more));
      }
    }
  }
};

// Half of the columns of 16 rows of a state, by a warp: tile n holds columns 8 n .. 8 n + 7 of the
// half.
template <int kWidth>
class StateRows {
 public:
  __device__ StateRows(int row_block, int half, int lane)
      : row_block_(row_block), half_(half), lane_(lane) {}

  // `state`: row 0 of these; `rows` of them exist, with k_dim columns.
  __device__ void Load(const float* state, int rows, int k_dim) {
    ForEach(rows, k_dim, [&](float& x, int offset) { x = state[offset]; });
  }
  __device__ void Store(float* state, int rows, int k_dim) {
    ForEach(rows, k_dim, [&](float& x, int offset) { state[offset] = x; });
  }

  // Through a chunk.
  __device__ __forceinline__ void Advance(const StateOperands<kWidth>& x, ToldRows<kWidth>* told,
                                          Exchange (&exchange)[kHalves]) {
    float recalled[2 * kChunkBlocks][4] = {};  // S Kᵀ, (16, 64)
    Recall(x.keys, told, recalled);
    StoreSums(exchange[half_], recalled);
    // What does not depend on the other half is loaded while its sums come.
    const HalfOfTokens mine = {half_}, others = {1 - half_};
    uint32_t values[kChunkBlocks][4];
#pragma unroll
    for (int j = 0; j < kChunkBlocks; ++j)
      ptx::LoadMatricesTransposed(values[j], BlockOf(x.values, j, row_block_, lane_));
    float beta[2 * kChunkBlocks][2], recall[2 * kChunkBlocks][2];
#pragma unroll
    for (int n = 0; n < 2 * kChunkBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float2 factors =
            *reinterpret_cast<const float2*>(&x.factors[TokenOf(n / 2, n % 2) + e]);
        beta[n][e] = factors.x, recall[n][e] = factors.y;
      }
    }
    const LowerBlocks inverse(x.inverse, mine, lane_);
    SyncHalves();
    AddSums(exchange[1 - half_], recalled);
    SplitFragment surprise[kChunkBlocks];  // R
#pragma unroll
    for (int j = 0; j < kChunkBlocks; ++j) {
#pragma unroll
      for (int n = 2 * j; n < 2 * j + 2; ++n) {
        float(&r)[4] = recalled[n];
        const uint32_t(&v)[4] = values[j];
        r[0] = beta[n][0] * fmaf(-recall[n][0], r[0], ptx::FirstBf16(v[n % 2 * 2]));
        r[1] = beta[n][1] * fmaf(-recall[n][1], r[1], ptx::SecondBf16(v[n % 2 * 2]));
        r[2] = beta[n][0] * fmaf(-recall[n][0], r[2], ptx::FirstBf16(v[n % 2 * 2 + 1]));
        r[3] = beta[n][1] * fmaf(-recall[n][1], r[3], ptx::SecondBf16(v[n % 2 * 2 + 1]));
      }
      surprise[j] = SplitFragment(recalled[2 * j], recalled[2 * j + 1]);
    }
    float first[2][4] = {}, second[2][4] = {};
    inverse.Multiply(surprise, mine, first, second);
    uint32_t keys[2][kBlocks][4];
    LoadKeys(x.keys, mine.first(), keys[0]);
    LoadKeys(x.keys, mine.second(), keys[1]);
    const float total = x.factors[0].total;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s_[n][e] *= total;
    }
    SplitFragment(first[0], first[1]).Store(told->deltas[mine.first()], lane_);
    SplitFragment(second[0], second[1]).Store(told->deltas[mine.second()], lane_);
    Keep(x.factors, mine.first(), first);
    Keep(x.factors, mine.second(), second);
    const SplitFragment kept[2] = {{first[0], first[1]}, {second[0], second[1]}};
    // What the other warp told there is read: its sums are part of these.
#pragma unroll
    for (int i = 0; i < 2; ++i) kept[i].Store(exchange[1 - half_].kept[i], lane_);
    Learn(keys[0], kept[0]);
    Learn(keys[1], kept[1]);
    LoadKeys(x.keys, others.first(), keys[0]);
    LoadKeys(x.keys, others.second(), keys[1]);
    SyncHalves();
    SplitFragment from_other[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) from_other[i].Load(exchange[half_].kept[i], lane_);
    Learn(keys[0], from_other[0]);
    Learn(keys[1], from_other[1]);
  }

 private:
  static constexpr int kTiles = kWidth / 16;  // of 8 columns
  static constexpr int kBlocks = kTiles / 2;  // of 16 columns

  __device__ __forceinline__ int TokenOf(int block, int n) const {
    return 16 * block + 8 * n + 2 * (lane_ % 4);
  }

  __device__ __forceinline__ void SyncHalves() const {
    ptx::SyncThreads(1 + row_block_, 32 * kHalves);
  }

  __device__ __forceinline__ void Recall(const ChunkTile<kWidth>& keys, ToldRows<kWidth>* told,
                                         float (&recalled)[2 * kChunkBlocks][4]) const {
    uint32_t blocks[2][kChunkBlocks][4];
    const auto load = [&](int d) {
#pragma unroll
      for (int i = 0; i < kChunkBlocks; ++i)
        ptx::LoadMatrices(blocks[d % 2][i], BlockOf(keys, i, half_ * kBlocks + d, lane_));
    };
    load(0);
#pragma unroll
    for (int d = 0; d < kBlocks; ++d) {
      if (d + 1 < kBlocks) load(d + 1);
      const SplitFragment s(s_[2 * d], s_[2 * d + 1]);
      s.Store(told->state[half_ * kBlocks + d], lane_);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
#pragma unroll
        for (int n = 0; n < 2 * kChunkBlocks; ++n)
          ptx::MmaBf16(recalled[n], part == 0 ? s.hi : s.lo, blocks[d % 2][n / 2][n % 2 * 2],
                       blocks[d % 2][n / 2][n % 2 * 2 + 1]);
      }
    }
  }

  __device__ __forceinline__ void StoreSums(Exchange& to,
                                            const float (&sums)[2 * kChunkBlocks][4]) const {
#pragma unroll
    for (int n = 0; n < 2 * kChunkBlocks; ++n)
      to.sums[n][lane_] = make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
  }

  __device__ __forceinline__ void AddSums(const Exchange& from,
                                          float (&sums)[2 * kChunkBlocks][4]) const {
#pragma unroll
    for (int n = 0; n < 2 * kChunkBlocks; ++n) {
      const float4 other = from.sums[n][lane_];
      sums[n][0] += other.x, sums[n][1] += other.y, sums[n][2] += other.z, sums[n][3] += other.w;
    }
  }

  __device__ __forceinline__ void Keep(const ChunkFactors* factors, int block,
                                       float (&deltas)[2][4]) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float left = factors[TokenOf(block, n)].keep;
      const float right = factors[TokenOf(block, n) + 1].keep;
      deltas[n][0] *= left, deltas[n][1] *= right, deltas[n][2] *= left, deltas[n][3] *= right;
    }
  }

  // Of 16 tokens, this half of the columns.
  __device__ __forceinline__ void LoadKeys(const ChunkTile<kWidth>& keys, int block,
                                           uint32_t (&blocks)[kBlocks][4]) const {
#pragma unroll
    for (int d = 0; d < kBlocks; ++d)
      ptx::LoadMatricesTransposed(blocks[d], BlockOf(keys, block, half_ * kBlocks + d, lane_));
  }

  // += the deltas of 16 tokens times their keys.
  __device__ __forceinline__ void Learn(const uint32_t (&keys)[kBlocks][4],
                                        const SplitFragment& kept) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
        ptx::MmaBf16(s_[n], part == 0 ? kept.hi : kept.lo, keys[n / 2][n % 2],
                     keys[n / 2][2 + n % 2]);
    }
  }

  template <typename Visit>
  __device__ void ForEach(int rows, int k_dim, const Visit& visit) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = lane_ / 4 + e / 2 * 8;
        const int column = half_ * (kWidth / 2) + 8 * n + 2 * (lane_ % 4) + e % 2;
        if (row < rows && column < k_dim) visit(s_[n][e], row * k_dim + column);
      }
    }
  }

  const int row_block_, half_, lane_;
  float s_[kTiles][4] = {};
};

// Outputs of 16 rows of a state at half of a chunk's tokens. `o`: token 0, row 0 of these; tokens
// are `stride` apart.
template <int kWidth>
__device__ __forceinline__ void ReadState(const OutputOperands<kWidth>& x,
                                          const ToldRows<kWidth>& told, HalfOfTokens tokens,
                                          int lane, float* o, int stride) {
  float products[2][2][4] = {}, products_of_lo[2][2][4] = {};  // by block; added below
  const int token_blocks[2] = {tokens.first(), tokens.second()};
  SplitFragment s[2];
  uint32_t queries[2][2][4];
  const auto load = [&](int d) {
    s[d % 2].Load(told.state[d], lane);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      ptx::LoadMatrices(queries[d % 2][i], BlockOf(x.queries, token_blocks[i], d, lane));
  };
  load(0);
#pragma unroll
  for (int d = 0; d < kWidth / 16; ++d) {
    if (d + 1 < kWidth / 16) load(d + 1);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        ptx::MmaBf16(part == 0 ? products[n / 2][n % 2] : products_of_lo[n / 2][n % 2],
                     part == 0 ? s[d % 2].hi : s[d % 2].lo, queries[d % 2][n / 2][n % 2 * 2],
                     queries[d % 2][n / 2][n % 2 * 2 + 1]);
    }
  }
  const LowerBlocks scores(x.scores, tokens, lane);
  SplitFragment deltas[kChunkBlocks];
#pragma unroll
  for (int j = 0; j < kChunkBlocks; ++j) deltas[j].Load(told.deltas[j], lane);
  const auto token_of = [&](int i, int n) { return 16 * token_blocks[i] + 8 * n + 2 * (lane % 4); };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float left = x.reads[token_of(i, n)], right = x.reads[token_of(i, n) + 1];
      float(&product)[4] = products[i][n];
#pragma unroll
      for (int e = 0; e < 4; ++e) product[e] += products_of_lo[i][n][e];
      product[0] *= left, product[1] *= right, product[2] *= left, product[3] *= right;
    }
  }
  scores.Multiply(deltas, tokens, products[0], products[1]);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        o[(token_of(i, n) + e % 2) * stride + lane / 4 + e / 2 * 8] = products[i][n][e];
    }
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

#endif

// CTA x: kSliceRows rows of a value head's state; y: of the sequences that have chunks.
template <int kWidth>
__global__ void __launch_bounds__(kRecurrenceThreads)
    ChunkRecurrenceKernel(const __grid_constant__ GatedDeltaNetParams p,
                          const __grid_constant__ CausalConv conv,
                          const __grid_constant__ ChunkSpan span) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ float4 shared_memory[];
  auto& shared = *reinterpret_cast<RecurrenceShared<kWidth>*>(shared_memory);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int row_block = warp / kHalves % kRowBlocks, half = warp % kHalves;
  const bool of_state = warp < kRowBlocks * kHalves;
  const int slices = span.value_width / kSliceRows;
  const int head = static_cast<int>(blockIdx.x) / slices;
  const int slice = static_cast<int>(blockIdx.x) % slices;
  const int key_head = head / (p.v_heads / p.k_heads);

  if (thread < 2) {
    ptx::BarrierInit(&shared.state_came[thread], 1);
    ptx::BarrierInit(&shared.output_came[thread], 1);
    ptx::FenceBarrierInit();
  }
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

  // Chunks count from `begin` on: the i-th uses buffer i % 2, for the (i / 2)-th time.
  const int count = static_cast<int>(end - begin);
  const auto slot_of = [&](int i) { return first_slot + begin + i - span.first; };
  const auto copy_state_operands = [&](int i) {
    StateOperands<kWidth>& to = shared.state[i % 2];
    uint64_t* came = &shared.state_came[i % 2];
    const int64_t slot = slot_of(i), at = slot * p.v_heads + head;
    ptx::BarrierExpect(came, sizeof(to));
    ptx::BulkCopy(&to.keys,
                  span.keys + (slot * p.k_heads + key_head) * 2 * kDeltaChunk * int64_t{kWidth},
                  sizeof(to.keys), came);
    ptx::BulkCopy(&to.values, span.values + (at * slices + slice) * kDeltaChunk * kSliceRows,
                  sizeof(to.values), came);
    ptx::BulkCopy(&to.inverse, &span.inverses[at], sizeof(to.inverse), came);
    ptx::BulkCopy(to.factors, span.factors + at * kDeltaChunk, sizeof(to.factors), came);
  };
  const auto copy_output_operands = [&](int i) {
    OutputOperands<kWidth>& to = shared.output[i % 2];
    uint64_t* came = &shared.output_came[i % 2];
    const int64_t slot = slot_of(i), at = slot * p.v_heads + head;
    ptx::BarrierExpect(came, sizeof(to));
    ptx::BulkCopy(
        &to.queries,
        span.keys + ((slot * p.k_heads + key_head) * 2 + 1) * kDeltaChunk * int64_t{kWidth},
        sizeof(to.queries), came);
    ptx::BulkCopy(&to.scores, &span.scores[at], sizeof(to.scores), came);
    ptx::BulkCopy(to.reads, span.reads + at * kDeltaChunk, sizeof(to.reads), came);
  };

  const int row = slice * kSliceRows + 16 * row_block;
  float* state = StateAt<float>(p.recurrent_state, s) + (int64_t{head} * p.v_dim + row) * p.k_dim;
  StateRows<kWidth> rows(row_block, half, lane);
  if (of_state && !(s.starts && begin == 0)) rows.Load(state, p.v_dim - row, p.k_dim);
  // Outputs follow a chunk behind.
#pragma unroll 1
  for (int i = 0; i <= count; ++i) {
    __syncthreads();  // both buffers of chunk i - 2 are free, what chunk i - 1 told is there
    if (thread == 0) {
      if (i == 0) copy_state_operands(0);
      if (i + 1 < count) copy_state_operands(i + 1);
      if (i < count) copy_output_operands(i);
    }
    if (of_state && i < count) {
      ptx::BarrierWait(&shared.state_came[i % 2], i / 2 % 2);
      rows.Advance(shared.state[i % 2], &shared.told[i % 2][row_block], shared.exchange[row_block]);
    } else if (!of_state && i > 0) {
      const int last = i - 1;
      ptx::BarrierWait(&shared.output_came[last % 2], last / 2 % 2);
      ReadState(shared.output[last % 2], shared.told[last % 2][row_block], HalfOfTokens{half}, lane,
                span.o + (slot_of(last) * p.v_heads + head) * kDeltaChunk * span.value_width + row,
                span.value_width);
    }
  }
  if (of_state) rows.Store(state, p.v_dim - row, p.k_dim);

  if (end < all) return;
  const int64_t key_channels = int64_t{p.k_heads} * p.k_dim;
  const int value = slice * kSliceRows + thread;
  if (thread < kSliceRows && value < p.v_dim)
    MoveWindow(conv, s, 2 * key_channels + int64_t{head} * p.v_dim + value);
  if (head % (p.v_heads / p.k_heads) != 0 || slice != 0) return;
  for (int c = thread; c < p.k_dim; c += kRecurrenceThreads) {
    MoveWindow(conv, s, int64_t{key_head} * p.k_dim + c);
    MoveWindow(conv, s, key_channels + int64_t{key_head} * p.k_dim + c);
  }
#endif
}

}  // namespace nibble::kernels::cuda
