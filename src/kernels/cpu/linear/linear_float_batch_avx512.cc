// Weights times BF16 activations as FP32 multiply-adds on AVX-512, many tokens.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512_float_batch {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/batch_avx512.inc"
//
#include "kernels/cpu/linear/int_panels_avx512.inc"

// Vector 2p is the second member of pair p, vector 2p + 1 the first: the order of PairDot.
NIBBLE_INLINE void WidenPair(__m512i words, Row* vectors) {
  const __m512i high = _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)));
  vectors[0] = _mm512_castsi512_ps(high);
  vectors[1] = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

template <template <int> typename WordsAt, int... kPair>
NIBBLE_INLINE void WidenPairs(const std::byte* p, Row* vectors,
                              std::integer_sequence<int, kPair...>) {
  (WidenPair(WordsAt<kPair>::Load(p), vectors + 2 * kPair), ...);
}
using AllPairs = std::make_integer_sequence<int, kPairsPerBlock>;

struct FloatKind {
  static constexpr int kDigits = 1;
  static constexpr int kScaleBlocks = 0;
  static int64_t Blocks(const PanelJob& job) { return 2 * job.groups; }  // of all float formats
  using Activations = F32Block;
  using Vector = Row;
  static constexpr int kVectors = kBlockK;
  static constexpr int kChunkBlocks = 4;

  static NIBBLE_INLINE Row Splat(const F32Block& x, int d) { return _mm512_set1_ps(x.x[d ^ 1]); }
  static NIBBLE_INLINE Row Start(const F32Block&, int) { return ZeroRow(); }
  static NIBBLE_INLINE Row Add(Row sum, Row vector, Row splat) {
    return FmaRows(vector, splat, sum);
  }
};

template <int P>
struct Bf16WordsAt {
  static NIBBLE_INLINE __m512i Load(const std::byte* p) { return Bf16Words<P>(p); }
};
template <int P>
struct Fp8WordsAt {
  static NIBBLE_INLINE __m512i Load(const std::byte* p) { return Fp8Words<P>(p); }
};

struct Bf16Kind : FloatKind {
  struct Scale {};
  static constexpr int kParts = 1;
  static constexpr int kGroupBlocks = 2;
  static constexpr int64_t kGroupBytes = int64_t{kPanelRows} * kGroupBlocks * kBlockK * 2;

  static NIBBLE_INLINE void DecodeGroup(const PanelJob&, int64_t, int64_t, const std::byte* p,
                                        DecodedBlock<Bf16Kind>* out) {
    for (int block = 0; block < kGroupBlocks; ++block, ++out) {
      WidenPairs<Bf16WordsAt>(p + block * kGroupBytes / kGroupBlocks, out->vectors, AllPairs());
    }
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Scale, const F32Block&) {
    return AddRows(acc, sum);
  }
};

struct Fp8Kind : FloatKind {
  using Scale = Row;
  static constexpr int kParts = 1;
  static constexpr int kGroupBlocks = 2;
  static constexpr int64_t kGroupBytes = int64_t{kPanelRows} * kGroupBlocks * kBlockK;

  static NIBBLE_INLINE void DecodeGroup(const PanelJob& job, int64_t panel, int64_t block,
                                        const std::byte* p, DecodedBlock<Fp8Kind>* out) {
    for (int i = 0; i < kGroupBlocks; ++i, ++out) {
      WidenPairs<Fp8WordsAt>(p + i * kGroupBytes / kGroupBlocks, out->vectors, AllPairs());
      const int64_t column = panel * job.scale_columns + (block + i) / job.blocks_per_scale;
      out->scales[0] = LoadRow(job.block_scales + column * kPanelRows);
    }
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Row scale, const F32Block&) {
    return FmaRows(sum, scale, acc);
  }
};

template <int... kPair>
NIBBLE_INLINE void WidenInt8(const std::byte* p, const PairZeros<8>& zeros, Row* vectors,
                             std::integer_sequence<int, kPair...>) {
  const auto widen = [vectors](int pair, RowPair rows) {
    vectors[2 * pair] = rows.high;
    vectors[2 * pair + 1] = rows.low;
  };
  (widen(kPair, Int8Rows<kPair>(p, zeros)), ...);
}

struct Int8Bf16Kind : FloatKind, IntPanels<8> {
  using IntPanels<8>::Blocks;
  using Scale = Row;
  static constexpr int kParts = 2;

  static NIBBLE_INLINE void DecodeGroup(const PanelJob& job, int64_t panel, int64_t block,
                                        const std::byte* p, DecodedBlock<Int8Bf16Kind>* out) {
    const IntHeader header = HeaderOf<8>(job, panel, block);
    WidenInt8(p, MakeInt8Zeros(header.zeros), out->vectors, AllPairs());
    out->scales[0] = out->scales[1] = header.scale;
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Row scale, const F32Block&) {
    return FmaRows(sum, scale, acc);
  }
};

}  // namespace
}  // namespace avx512_float_batch

FloatRuns Avx512FloatBatchRuns() {
  using namespace avx512_float_batch;
  return {.bf16 = kBatch<Bf16Kind>, .fp8 = kBatch<Fp8Kind>, .int8_bf16 = kBatch<Int8Bf16Kind>};
}

}  // namespace nibble::kernels::cpu
