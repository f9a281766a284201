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
struct CodeWordsAt {
  static NIBBLE_INLINE __m512i Load(const std::byte* p) { return CodeBf16s<P>(p); }
};
template <int P>
struct Bf16WordsAt {
  static NIBBLE_INLINE __m512i Load(const std::byte* p) { return Bf16Words<P>(p); }
};
template <int P>
struct Fp8WordsAt {
  static NIBBLE_INLINE __m512i Load(const std::byte* p) { return Fp8Words<P>(p); }
};

template <CodeFormat F>
struct CodeKind : FloatKind {
  using Scale = Row;
  static constexpr int kParts = CodeLayout<F>::kScalesPerBlock;
  static constexpr int kGroupBlocks = CodeLayout<F>::kBlocks;
  static constexpr int64_t kGroupBytes = kCodeGroupBytes<F>;

  static NIBBLE_INLINE void DecodeGroup(const std::byte* p, DecodedBlock<CodeKind>* out) {
    ScaleBytes scales = LoadScaleBytes(p);
    for (int block = 0; block < kGroupBlocks; ++block, ++out) {
      WidenPairs<CodeWordsAt>(p + kScaleBytes + block * kCodeBytes, out->vectors, AllPairs());
      out->scales[0] = ScaleRow<F, 0>(scales);
      if constexpr (kParts == 2) out->scales[1] = ScaleRow<F, 1>(scales);
      scales = NextScales<F>(scales);
    }
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Row scale, const F32Block&) {
    return FmaRows(sum, scale, acc);
  }
};

struct Bf16Kind : FloatKind {
  struct Scale {};
  static constexpr int kParts = 1;
  static constexpr int kGroupBlocks = 2;
  static constexpr int64_t kGroupBytes = int64_t{kPanelRows} * kGroupBlocks * kBlockK * 2;

  static NIBBLE_INLINE void DecodeGroup(const std::byte* p, DecodedBlock<Bf16Kind>* out) {
    for (int block = 0; block < kGroupBlocks; ++block, ++out) {
      WidenPairs<Bf16WordsAt>(p + block * kGroupBytes / kGroupBlocks, out->vectors, AllPairs());
    }
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Scale, const F32Block&) {
    return AddRows(acc, sum);
  }
};

}  // namespace
}  // namespace avx512_float_batch

FloatRuns Avx512FloatBatchRuns() {
  using namespace avx512_float_batch;
  return {.nvfp4 = kBatch<CodeKind<CodeFormat::kNvfp4>>,
          .mxfp4 = kBatch<CodeKind<CodeFormat::kMxfp4>>,
          .bf16 = kBatch<Bf16Kind>};
}

}  // namespace nibble::kernels::cpu
