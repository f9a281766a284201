// BF16, MXFP4 and INT8 weights times BF16 activations by vdpbf16ps, many tokens: the sums of
// linear_bf16_avx512.cc's loops. The other formats reach what their scales
// allow there.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512_bf16_batch {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/batch_avx512.inc"
//
#include "kernels/cpu/linear/int_panels_avx512.inc"

using AllPairs = std::make_integer_sequence<int, kPairsPerBlock>;

// words(pair) of the 16 pairs of a block, pair a compile-time number.
template <typename Words, int... kPair>
NIBBLE_INLINE void DecodePairs(Words&& words, __m512i* out, std::integer_sequence<int, kPair...>) {
  ((out[kPair] = words.template operator()<kPair>()), ...);
}

struct WordKind {
  static constexpr int kDigits = 1;
  static constexpr int kScaleBlocks = 0;
  using Activations = Bf16Block;
  using Vector = __m512i;
  static constexpr int kVectors = kPairsPerBlock;
  static constexpr int kChunkBlocks = 8;

  static NIBBLE_INLINE __m512i Splat(const Bf16Block& x, int d) { return SplatDword(&x.x[2 * d]); }
  static NIBBLE_INLINE Row Start(const Bf16Block&, int) { return ZeroRow(); }
  static NIBBLE_INLINE Row Add(Row sum, __m512i words, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)words, (__m512bh)x);
  }
};

struct Bf16WordKind : WordKind {
  struct Scale {};
  static constexpr bool kInPlace = true;
  static constexpr int kParts = 1;
  static constexpr int kGroupBlocks = 2;
  static constexpr int64_t kGroupBytes = int64_t{kPanelRows} * kGroupBlocks * kBlockK * 2;

  static int64_t Blocks(const PanelJob& job) { return kGroupBlocks * job.groups; }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Scale, const Bf16Block&) {
    return AddRows(acc, sum);
  }
};

static_assert(sizeof(DecodedBlock<Bf16WordKind>) == kPanelRows * kBlockK * 2);

struct Int8WordKind : WordKind, IntPanels<8> {
  using Scale = Row;
  static constexpr int kParts = 2;

  static NIBBLE_INLINE void DecodeGroup(const PanelJob& job, int64_t panel, int64_t block,
                                        const std::byte* p, DecodedBlock<Int8WordKind>* out) {
    const IntHeader header = HeaderOf<8>(job, panel, block);
    const PairZeros<8> zeros = MakeInt8Zeros(header.zeros);
    DecodePairs([&]<int P>() { return Int8Words<P>(p, zeros); }, out->vectors, AllPairs());
    out->scales[0] = out->scales[1] = header.scale;
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Row scale, const Bf16Block&) {
    return FmaRows(sum, scale, acc);
  }
};

// A code times a power of two is exact in BF16, and so is the sum of such products: adding it is
// what a multiply-add of sum and scale does. Packed scales are 2^(byte - 127), 0 for 0, and stay
// far below what a word cannot hold.
struct Mxfp4WordKind : WordKind {
  struct Scale {};
  static constexpr int kParts = 1;
  static constexpr int kGroupBlocks = CodeLayout<CodeFormat::kMxfp4>::kBlocks;
  static constexpr int64_t kGroupBytes = kCodeGroupBytes<CodeFormat::kMxfp4>;

  static int64_t Blocks(const PanelJob& job) { return kGroupBlocks * job.groups; }
  static NIBBLE_INLINE void DecodeGroup(const PanelJob&, int64_t, int64_t, const std::byte* p,
                                        DecodedBlock<Mxfp4WordKind>* out) {
    ScaleBytes bytes = LoadScaleBytes(p);
    for (int block = 0; block < kGroupBlocks; ++block, ++out) {
      const std::byte* codes = p + kScaleBytes + block * kCodeBytes;
      const __m512i byte = _mm512_and_si512(bytes, _mm512_set1_epi32(0xFF));
      const __m512i both = _mm512_or_si512(byte, _mm512_slli_epi32(byte, 16));
      const __mmask32 any = _mm512_test_epi16_mask(both, both);
      const __m512i power = _mm512_slli_epi16(_mm512_sub_epi16(both, _mm512_set1_epi16(127)), 7);
      DecodePairs(
          [&]<int P>() {
            const __m512i words = CodeBf16s<P>(codes);
            return _mm512_maskz_add_epi16(_mm512_mask_test_epi16_mask(any, words, words), words,
                                          power);
          },
          out->vectors, AllPairs());
      bytes = NextScales<CodeFormat::kMxfp4>(bytes);
    }
  }
  static NIBBLE_INLINE Row Take(Row acc, Row sum, Scale, const Bf16Block&) {
    return AddRows(acc, sum);
  }
};

}  // namespace
}  // namespace avx512_bf16_batch

FloatRuns Avx512Bf16BatchRuns() {
  using namespace avx512_bf16_batch;
  return {.bf16 = kBatch<Bf16WordKind>,
          .int8_bf16 = kBatch<Int8WordKind>,
          .mxfp4 = kBatch<Mxfp4WordKind>};
}

}  // namespace nibble::kernels::cpu
