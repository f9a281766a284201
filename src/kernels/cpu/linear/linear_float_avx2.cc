// BF16, FP8 and INT8 weights times BF16 activations as FP32 multiply-adds on AVX2, the high member
// of a pair first. Sums and their order are those of panel_loops.inc and int_loops.inc.
//
// Up to four tokens: one or two panels stream by and are widened in registers. More: a chunk of K
// of a panel is widened once into the first-level cache, where all tokens of the pass meet it.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cpu/linear/code_kernels_avx2.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx2_float {
namespace {

#include "kernels/cpu/linear/rows_avx2.inc"
//
#include "kernels/cpu/linear/panel_output.inc"

// Two pairs of k of 16 rows.
struct TwoPairs {
  Row high[2];
  Row low[2];
};

// A kind of weights says
//
//   kParts                     sums of a block, each meets the scale
//   kBlockBytes                of 32 k
//   Column, ColumnOf(job, panel, p, block)  what blocks of a scale column share
//   HeaderBytes(job)           before a scale column's first block
//   ColumnBlocks(job)          blocks that share it
//   Widen<Q>(p, column)        pairs 2Q and 2Q + 1 of the 32 k at p
//   Take(acc, sum, column)

struct Bf16Kind {
  static constexpr int kParts = 1;
  static constexpr int64_t kBlockBytes = int64_t{kPanelRows} * kBlockK * 2;
  struct Column {};

  static int64_t Blocks(const PanelJob& job) { return 2 * job.groups; }
  static int64_t HeaderBytes(const PanelJob&) { return 0; }
  static int64_t ColumnBlocks(const PanelJob& job) { return Blocks(job); }
  static NIBBLE_INLINE Column ColumnOf(const PanelJob&, int64_t, const std::byte*, int64_t) {
    return {};
  }
  template <int Q>
  static NIBBLE_INLINE TwoPairs Widen(const std::byte* p, Column) {
    TwoPairs pairs;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m256i a = Load256(p + (2 * Q + i) * 64);
      const __m256i b = Load256(p + (2 * Q + i) * 64 + 32);
      const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
      pairs.high[i] = {_mm256_castsi256_ps(_mm256_and_si256(a, mask)),
                       _mm256_castsi256_ps(_mm256_and_si256(b, mask))};
      pairs.low[i] = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
                      _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
    }
    return pairs;
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Column) { return AddRows(acc, sum); }
};

// E4M3 as F16 of 2^-8 the value, subnormals included; the scale takes the 2^8.
struct Fp8Kind {
  static constexpr int kParts = 1;
  static constexpr int64_t kBlockBytes = int64_t{kPanelRows} * kBlockK;
  using Column = Row;

  static int64_t Blocks(const PanelJob& job) { return 2 * job.groups; }
  static int64_t HeaderBytes(const PanelJob&) { return 0; }
  static int64_t ColumnBlocks(const PanelJob& job) { return job.blocks_per_scale; }
  static NIBBLE_INLINE Row ColumnOf(const PanelJob& job, int64_t panel, const std::byte*,
                                    int64_t block) {
    const int64_t column = panel * job.scale_columns + block / job.blocks_per_scale;
    const __m256 factor = _mm256_set1_ps(256.0f);
    return MulRows(LoadRow(job.block_scales + column * kPanelRows), {factor, factor});
  }
  template <int Q>
  static NIBBLE_INLINE TwoPairs Widen(const std::byte* p, Row) {
    TwoPairs pairs;
    WidenHalf(p + Q * 64, &pairs, &Row::a);
    WidenHalf(p + Q * 64 + 32, &pairs, &Row::b);
    return pairs;
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Row scale) { return FmaRows(sum, scale, acc); }

 private:
  // Eight rows: the first pair's come to the lower lane, the second's to the upper one.
  static NIBBLE_INLINE void WidenHalf(const std::byte* p, TwoPairs* pairs, __m256 Row::* rows) {
    constexpr int kPairByLane = 0b11'01'10'00;
    const __m256i codes = _mm256_permute4x64_epi64(Load256(p), kPairByLane);
    Store(Halfs(codes), pairs->high, rows);
    Store(Halfs(_mm256_slli_epi16(codes, 8)), pairs->low, rows);
  }
  // F16 of the codes in the high bytes of words.
  static NIBBLE_INLINE __m256i Halfs(__m256i words) {
    return _mm256_and_si256(_mm256_srai_epi16(words, 1),
                            _mm256_set1_epi16(static_cast<int16_t>(0xBF80)));
  }
  static NIBBLE_INLINE void Store(__m256i halfs, Row (&out)[2], __m256 Row::* rows) {
    out[0].*rows = _mm256_cvtph_ps(_mm256_castsi256_si128(halfs));
    out[1].*rows = _mm256_cvtph_ps(_mm256_extracti128_si256(halfs, 1));
  }
};

// A code in the low byte of 2^23 as a float is 2^23 + code.
struct Int8Kind {
  static constexpr int kParts = 2;
  static constexpr int64_t kBlockBytes = int64_t{kPanelRows} * kBlockK;
  static constexpr int32_t kMagicBits = 0x4B000000;
  struct Column {
    Row scale;
    Row zeros;  // 2^23 + zero point
  };

  static int64_t Blocks(const PanelJob& job) { return job.groups; }
  static int64_t HeaderBytes(const PanelJob& job) { return job.header_bytes; }
  static int64_t ColumnBlocks(const PanelJob& job) { return job.blocks_per_scale; }
  static NIBBLE_INLINE Column ColumnOf(const PanelJob& job, int64_t, const std::byte* header,
                                       int64_t) {
    const bool wide = job.header_bytes > kIntHeaderBytes;
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(wide ? 0xFFFFFFFFu : kNarrowScaleMask));
    const auto scale = [&](const std::byte* p) {
      return _mm256_castsi256_ps(_mm256_and_si256(Load256(p), mask));
    };
    const auto zero = [&](const std::byte* p) {
      const __m256i low = _mm256_and_si256(Load256(p), _mm256_set1_epi32(0xFF));
      return _mm256_castsi256_ps(_mm256_or_si256(low, _mm256_set1_epi32(kMagicBits)));
    };
    const std::byte* zeros = header + (wide ? kIntHeaderBytes : 0);
    return {.scale = {scale(header), scale(header + 32)}, .zeros = {zero(zeros), zero(zeros + 32)}};
  }
  // The two pairs of 8 k whose members are bytes Q % 2 and Q % 2 + 2 of two vectors.
  template <int Q>
  static NIBBLE_INLINE TwoPairs Widen(const std::byte* p, const Column& column) {
    TwoPairs pairs;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m256i a = Load256(p + (Q / 2 * 2 + i) * 64);
      const __m256i b = Load256(p + (Q / 2 * 2 + i) * 64 + 32);
      pairs.high[i] = {Float<Q % 2 + 2>(a, column.zeros.a), Float<Q % 2 + 2>(b, column.zeros.b)};
      pairs.low[i] = {Float<Q % 2>(a, column.zeros.a), Float<Q % 2>(b, column.zeros.b)};
    }
    return pairs;
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, const Column& column) {
    return FmaRows(sum, column.scale, acc);
  }

 private:
  // Byte `kByte` of every dword less the zero point.
  template <int kByte>
  static NIBBLE_INLINE __m256 Float(__m256i bytes, __m256 zeros) {
    constexpr int kNone = -1;
    const __m256i order = _mm256_setr_epi8(
        kByte, kNone, kNone, kNone, kByte + 4, kNone, kNone, kNone, kByte + 8, kNone, kNone, kNone,
        kByte + 12, kNone, kNone, kNone, kByte, kNone, kNone, kNone, kByte + 4, kNone, kNone, kNone,
        kByte + 8, kNone, kNone, kNone, kByte + 12, kNone, kNone, kNone);
    const __m256i magic =
        _mm256_or_si256(_mm256_shuffle_epi8(bytes, order), _mm256_set1_epi32(kMagicBits));
    return _mm256_sub_ps(_mm256_castsi256_ps(magic), zeros);
  }
};

constexpr int kQuads = kPairsPerBlock / 2;  // of pairs, in a block

// ---- Few tokens

// Adds pairs 2Q to 2 End of P panels and T tokens: sum i is of panel i % P and token i / P.
template <typename Kind, int T, int P, int Q, int End>
NIBBLE_INLINE void AddPairs(const std::byte* const (&w)[P],
                            const typename Kind::Column (&columns)[P], const F32Block* x,
                            Row (&sum)[T * P]) {
  if constexpr (Q < End) {
    TwoPairs pairs[P];
#pragma GCC unroll 2
    for (int panel = 0; panel < P; ++panel) {
      pairs[panel] = Kind::template Widen<Q>(w[panel], columns[panel]);
    }
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
#pragma GCC unroll 8
      for (int i = 0; i < T * P; ++i) {
        const float* activations = x[i / P].x + 4 * Q + 2 * pair;
        sum[i] = FmaSplat(pairs[i % P].high[pair], activations[1], sum[i]);
        sum[i] = FmaSplat(pairs[i % P].low[pair], activations[0], sum[i]);
      }
    }
    AddPairs<Kind, T, P, Q + 1, End>(w, columns, x, sum);
  }
}

template <typename Kind, int T, int P, int kPart>
NIBBLE_INLINE void StreamPart(const std::byte* const (&w)[P],
                              const typename Kind::Column (&columns)[P], const F32Block* x,
                              Row (&acc)[T * P]) {
  constexpr int kLength = kQuads / Kind::kParts;
  Row sum[T * P];
#pragma GCC unroll 8
  for (int i = 0; i < T * P; ++i) sum[i] = ZeroRow();
  AddPairs<Kind, T, P, kPart * kLength, (kPart + 1) * kLength>(w, columns, x, sum);
#pragma GCC unroll 8
  for (int i = 0; i < T * P; ++i) acc[i] = Kind::Take(acc[i], sum[i], columns[i % P]);
}

// One tile of T slots and P panels from `panel` on, `panels` of them; others are the last one's
// copies.
template <typename Kind, int T, int P>
NIBBLE_INLINE void RunTogether(const PanelJob& job, int64_t panel, int panels) {
  const int64_t blocks = Kind::Blocks(job);
  const int64_t column_blocks = Kind::ColumnBlocks(job);
  const int64_t skip = (P - 1) * job.panel_bytes;
  const auto* x = reinterpret_cast<const F32Block*>(job.activations);
  const std::byte* p = job.weights + panel * job.panel_bytes;
  const std::byte* const end = p + job.panel_bytes;
  Row acc[T * P];
#pragma GCC unroll 8
  for (Row& row : acc) row = ZeroRow();
  for (int64_t block = 0; block < blocks;) {
    const std::byte* w[P];
    typename Kind::Column columns[P];
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) {
      const int own = i < panels ? i : panels - 1;
      w[i] = p + own * job.panel_bytes;
      columns[i] = Kind::ColumnOf(job, panel + own, w[i], block);
      w[i] += Kind::HeaderBytes(job);
    }
    p += Kind::HeaderBytes(job);
    const int64_t left = blocks - block;
    for (int64_t i = left < column_blocks ? left : column_blocks; i > 0; --i, ++block, x += T) {
#pragma GCC unroll 2
      for (const std::byte* own : w) PrefetchStream<Kind::kBlockBytes>(own, end - p, skip);
      StreamPart<Kind, T, P, 0>(w, columns, x, acc);
      if constexpr (Kind::kParts == 2) StreamPart<Kind, T, P, 1>(w, columns, x, acc);
#pragma GCC unroll 2
      for (const std::byte*& own : w) own += Kind::kBlockBytes;
      p += Kind::kBlockBytes;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < T * P; ++i) {
    if (i % P < panels && i / P < job.m) StoreOutput(job, panel + i % P, i / P, acc[i]);
  }
}

template <typename Kind, int T, int P>
void RunStream(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; panel += P) {
    const int64_t left = panel_end - panel;
    RunTogether<Kind, T, P>(job, panel, static_cast<int>(left < P ? left : P));
  }
}

// ---- Many tokens

// In the order of the sums: the second member of a pair first.
template <typename Kind>
struct WidenedBlock {
  Row k[kBlockK];
  typename Kind::Column column;
};

template <typename Kind, int... kQ>
NIBBLE_INLINE void WidenBlock(const std::byte* p, WidenedBlock<Kind>* out,
                              std::integer_sequence<int, kQ...>) {
  const auto store = [out](int q, const TwoPairs& pairs) {
    for (int i = 0; i < 2; ++i) {
      out->k[4 * q + 2 * i] = pairs.high[i];
      out->k[4 * q + 2 * i + 1] = pairs.low[i];
    }
  };
  (store(kQ, Kind::template Widen<kQ>(p, out->column)), ...);
}

constexpr int64_t kChunkBlocks = 8;
constexpr int kMostTokens = 5;  // of a tile: ten registers hold their sums

// Adds the products of T tokens and `blocks` blocks to their sums. The activations of the tile
// after these are next_tile bytes further on.
template <typename Kind, int T>
void AddChunk(const WidenedBlock<Kind>* widened, const F32Block* x, int64_t next_tile,
              int64_t blocks, Row* sums) {
  constexpr int kLength = kBlockK / Kind::kParts;
  for (int64_t block = 0; block < blocks; ++block, ++widened, x += T) {
    PrefetchLines<sizeof(*x) * T>(reinterpret_cast<const std::byte*>(x) + next_tile);
#pragma GCC unroll 2
    for (int part = 0; part < Kind::kParts; ++part) {
      Row sum[T];
#pragma GCC unroll 5
      for (int t = 0; t < T; ++t) sum[t] = ZeroRow();
#pragma GCC unroll 32
      for (int k = part * kLength; k < (part + 1) * kLength; ++k) {
        const Row w = widened->k[k];
#pragma GCC unroll 5
        for (int t = 0; t < T; ++t) sum[t] = FmaSplat(w, x[t].x[k ^ 1], sum[t]);
      }
#pragma GCC unroll 5
      for (int t = 0; t < T; ++t) sums[t] = Kind::Take(sums[t], sum[t], widened->column);
    }
  }
}

template <typename Kind, int... kSizes>
void RunBatch(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  WidenedBlock<Kind> widened[kChunkBlocks];
  Row sums[kPassTokens + kMostTokens];
  const int64_t blocks = Kind::Blocks(job);
  const int64_t column_blocks = Kind::ColumnBlocks(job);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t token = 0; token < job.m + kMostTokens; ++token) sums[token] = ZeroRow();
    const std::byte* p = job.weights + panel * job.panel_bytes;
    typename Kind::Column column = {};
    int64_t column_left = 0;
    for (int64_t block = 0; block < blocks; block += kChunkBlocks) {
      const int64_t left = blocks - block;
      const int64_t count = left < kChunkBlocks ? left : kChunkBlocks;
      for (int64_t b = 0; b < count; ++b, --column_left, p += Kind::kBlockBytes) {
        if (column_left == 0) {
          column = Kind::ColumnOf(job, panel, p, block + b);
          column_left = column_blocks;
          p += Kind::HeaderBytes(job);
        }
        PrefetchFar<Kind::kBlockBytes>(p + kChunkBlocks * Kind::kBlockBytes);
        widened[b].column = column;
        WidenBlock<Kind>(p, &widened[b], std::make_integer_sequence<int, kQuads>());
      }
      for (int64_t token = 0, slots = 0; token < job.m; token += slots) {
        slots = token < job.wide_tokens ? job.tile : job.last_tile;
        const auto* x =
            reinterpret_cast<const F32Block*>(job.activations + token * job.token_bytes) +
            block * slots;
        static_cast<void>(
            ((slots == kSizes &&
              (AddChunk<Kind, kSizes>(widened, x, slots * job.token_bytes, count, sums + token),
               true)) ||
             ...));
      }
    }
    for (int64_t token = 0; token < job.m; ++token) StoreOutput(job, panel, token, sums[token]);
  }
}

template <typename Kind>
constexpr PanelRun kBatch = RunBatch<Kind, 1, 2, 3, 4, 5>;

template <typename Kind>
void RunFew(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  constexpr PanelRun kRuns[] = {RunStream<Kind, 1, 2>, RunStream<Kind, 2, 2>, RunStream<Kind, 3, 1>,
                                RunStream<Kind, 4, 1>, kBatch<Kind>};
  kRuns[job.m - 1](job, panel_begin, panel_end);
}

template <typename Kind>
constexpr PanelKernel kKernel = {
    .run = kBatch<Kind>, .sizes = {1, 2, 3, 4, 5}, .run_one_tile = RunFew<Kind>};

}  // namespace
}  // namespace avx2_float

FloatKernels Avx2FloatKernels() {
  using namespace avx2_float;
  return {.bf16 = kKernel<Bf16Kind>, .fp8 = kKernel<Fp8Kind>, .int8_bf16 = kKernel<Int8Kind>};
}

}  // namespace nibble::kernels::cpu
