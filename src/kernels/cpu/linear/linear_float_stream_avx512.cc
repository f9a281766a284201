// FP8 and INT8 weights times BF16 activations as FP32 multiply-adds on AVX-512, one tile of few
// tokens: two panels stream by, so that twice as many sums hide the latency of the additions.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512_float_stream {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/int_panels_avx512.inc"

// A kind of weights says what its 32 k of a panel are:
//
//   kBlockBytes
//   kParts                     sums of a block, each meets the scale
//   Blocks(job), ColumnBlocks(job)  of all K; that share a scale column
//   HeaderBytes(job)           before a scale column's first block
//   Column, ColumnOf(job, panel, p, block)  what blocks of a scale column share; p: its header
//   Widen<P>(p, column)        pair P
//   Scale(column)
struct Fp8Kind {
  static constexpr int64_t kBlockBytes = int64_t{kPanelRows} * kBlockK;
  static constexpr int kParts = 1;
  using Column = Row;

  static int64_t Blocks(const PanelJob& job) { return 2 * job.groups; }
  static int64_t ColumnBlocks(const PanelJob& job) { return job.blocks_per_scale; }
  static int64_t HeaderBytes(const PanelJob&) { return 0; }
  static NIBBLE_INLINE Row ColumnOf(const PanelJob& job, int64_t panel, const std::byte*,
                                    int64_t block) {
    const int64_t column = panel * job.scale_columns + block / job.blocks_per_scale;
    return LoadRow(job.block_scales + column * kPanelRows);
  }
  template <int P>
  static NIBBLE_INLINE RowPair Widen(const std::byte* p, Row) {
    const __m512i words = Fp8Words<P>(p);
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    return {.low = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
            .high = _mm512_castsi512_ps(_mm512_and_si512(words, mask))};
  }
  static NIBBLE_INLINE Row Scale(Row column) { return column; }
};

struct Int8Kind {
  static constexpr int64_t kBlockBytes = int64_t{kPanelRows} * kBlockK;
  static constexpr int kParts = 2;
  struct Column {
    Row scale;
    PairZeros<8> zeros;
  };

  static int64_t Blocks(const PanelJob& job) { return job.groups; }
  static int64_t ColumnBlocks(const PanelJob& job) { return job.blocks_per_scale; }
  static int64_t HeaderBytes(const PanelJob& job) { return job.header_bytes; }
  static NIBBLE_INLINE Column ColumnOf(const PanelJob& job, int64_t, const std::byte* p, int64_t) {
    const IntHeader header = LoadHeader(job, p);
    return {header.scale, MakeInt8Zeros(header.zeros)};
  }
  template <int P>
  static NIBBLE_INLINE RowPair Widen(const std::byte* p, const Column& column) {
    return Int8Rows<P>(p, column.zeros);
  }
  static NIBBLE_INLINE Row Scale(const Column& column) { return column.scale; }
};

// Adds pairs [Pair, End) of N panels and T tokens, the second member of a pair first: sum i is of
// panel i % N and token i / N.
template <typename Kind, int T, int N, int Pair, int End>
NIBBLE_INLINE void AddPairs(const std::byte* const (&w)[N],
                            const typename Kind::Column (&columns)[N], const F32Block* x,
                            Row (&dot)[N * T]) {
  if constexpr (Pair < End) {
    RowPair rows[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) rows[i] = Kind::template Widen<Pair>(w[i], columns[i]);
#pragma GCC unroll 16
    for (int i = 0; i < N * T; ++i) {
      dot[i] = FmaSplat(rows[i % N].high, x[i / N].x[2 * Pair + 1], dot[i]);
      dot[i] = FmaSplat(rows[i % N].low, x[i / N].x[2 * Pair], dot[i]);
    }
    AddPairs<Kind, T, N, Pair + 1, End>(w, columns, x, dot);
  }
}

template <typename Kind, int T, int N, int kPart>
NIBBLE_INLINE void AddPart(const std::byte* const (&w)[N],
                           const typename Kind::Column (&columns)[N], const F32Block* x,
                           Row (&acc)[N * T]) {
  constexpr int kLength = kPairsPerBlock / Kind::kParts;
  Row dot[N * T];
#pragma GCC unroll 16
  for (int i = 0; i < N * T; ++i) dot[i] = ZeroRow();
  AddPairs<Kind, T, N, kPart * kLength, (kPart + 1) * kLength>(w, columns, x, dot);
#pragma GCC unroll 16
  for (int i = 0; i < N * T; ++i) acc[i] = FmaRows(dot[i], Kind::Scale(columns[i % N]), acc[i]);
}

// N panels from `panel` on, of which `panels` are there: the last one stands for the others.
template <typename Kind, int T, int N>
void RunTogether(const PanelJob& job, int64_t panel, int panels) {
  const auto* x = reinterpret_cast<const F32Block*>(job.activations);
  const std::byte* first = job.weights + panel * job.panel_bytes;
  const std::byte* const end = first + job.panel_bytes;
  const std::byte* w[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) w[i] = first + (i < panels ? i : panels - 1) * job.panel_bytes;
  Row acc[N * T];
#pragma GCC unroll 16
  for (int i = 0; i < N * T; ++i) acc[i] = ZeroRow();
  const int64_t blocks = Kind::Blocks(job);
  for (int64_t block = 0; block < blocks;) {
    typename Kind::Column columns[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const int64_t own = panel + (i < panels ? i : panels - 1);
      columns[i] = Kind::ColumnOf(job, own, w[i], block);
      w[i] += Kind::HeaderBytes(job);
    }
    const int64_t left = blocks - block;
    const int64_t column_blocks = Kind::ColumnBlocks(job);
    for (int64_t i = left < column_blocks ? left : column_blocks; i > 0; --i, ++block, x += T) {
#pragma GCC unroll 4
      for (const std::byte* p : w) {
        PrefetchStream<Kind::kBlockBytes>(p, end - w[0], (N - 1) * job.panel_bytes);
      }
      AddPart<Kind, T, N, 0>(w, columns, x, acc);
      if constexpr (Kind::kParts == 2) AddPart<Kind, T, N, 1>(w, columns, x, acc);
#pragma GCC unroll 4
      for (const std::byte*& p : w) p += Kind::kBlockBytes;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < N * T; ++i) {
    if (i / N < job.m && i % N < panels) StoreOutput(job, panel + i % N, i / N, acc[i]);
  }
}

// Four panels at once gain nothing for INT8 and cost FP8, whose decoding needs all registers, 10 %.
template <typename Kind, int T>
void RunTokens(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  constexpr int kTogether = 2;
  for (int64_t panel = panel_begin; panel < panel_end; panel += kTogether) {
    const int64_t left = panel_end - panel;
    RunTogether<Kind, T, kTogether>(job, panel,
                                    static_cast<int>(left < kTogether ? left : kTogether));
  }
}

template <typename Kind, int... kSizes>
void RunStream(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  const int64_t slots = job.wide_tokens > 0 ? job.tile : job.last_tile;
  static_cast<void>(
      ((slots == kSizes && (RunTokens<Kind, kSizes>(job, panel_begin, panel_end), true)) || ...));
}

template <typename Kind>
constexpr PanelRun kStream = RunStream<Kind, 1, 2, 3, 4, 5, 6, 7, 8>;

}  // namespace
}  // namespace avx512_float_stream

FloatRuns Avx512FloatStreamRuns() {
  using namespace avx512_float_stream;
  return {.fp8 = kStream<Fp8Kind>, .int8_bf16 = kStream<Int8Kind>};
}

}  // namespace nibble::kernels::cpu
