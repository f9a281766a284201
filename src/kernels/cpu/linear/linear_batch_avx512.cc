// 4-bit codes times integer activations on AVX-512 with VNNI and VBMI, many tokens.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512_batch {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/pairs_avx512.inc"
//
#include "kernels/cpu/linear/batch_avx512.inc"

template <CodeFormat F, typename Products>
struct CodeKind : Products {
  using Vector = __m512i;
  using Scale = PartScale;
  using Sum = typename Products::Sum;
  static constexpr int kVectors = 4 * Products::kCodes;
  static constexpr int kGroupBlocks = CodeLayout<F>::kBlocks;
  static constexpr int64_t kGroupBytes = kCodeGroupBytes<F>;
  static constexpr int kChunkBlocks = 32 / Products::kCodes;

  static NIBBLE_INLINE void DecodeCodes(const std::byte* p, __m512i* vectors) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v, vectors += Products::kCodes) {
      const __m512i bytes = _mm512_load_si512(p + 64 * v);
      vectors[0] = Products::template Decode<0>(bytes);
      vectors[1] = Products::template Decode<1>(bytes);
      if constexpr (Products::kCodes == 4) {
        vectors[2] = Products::template Decode<2>(bytes);
        vectors[3] = Products::template Decode<3>(bytes);
      }
    }
  }

  static NIBBLE_INLINE void DecodeGroup(const PanelJob&, int64_t, int64_t, const std::byte* p,
                                        DecodedBlock<CodeKind>* out) {
    ScaleBytes scales = LoadScaleBytes(p);
    for (int block = 0; block < kGroupBlocks; ++block, ++out) {
      DecodeCodes(p + kScaleBytes + block * kCodeBytes, out->vectors);
      out->scales[0] = ScaleOfPart<F, 0>(scales);
      if constexpr (Products::kParts == 2) out->scales[1] = ScaleOfPart<F, 1>(scales);
      scales = NextScales<F>(scales);
    }
  }

  static NIBBLE_INLINE Row Take(Row acc, Sum sum, const PartScale& scale,
                                const typename Products::Activations& x) {
    return FmaSplat(FmaRows(Products::Finish(sum), scale.scale, scale.magic), x.scale, acc);
  }
};

template <CodeFormat F>
using Int24 = Int24Products<CodeLayout<F>::kScalesPerBlock>;

// The codes of CodeKind, whose sums need no start of kFloatMagic and so no second scale.
template <CodeFormat F>
struct Int24Kind : CodeKind<F, Int24<F>> {
  using Scale = Row;
  static constexpr int kChunkBlocks = 8;  // its activations are large

  static NIBBLE_INLINE void DecodeGroup(const PanelJob&, int64_t, int64_t, const std::byte* p,
                                        DecodedBlock<Int24Kind>* out) {
    ScaleBytes scales = LoadScaleBytes(p);
    for (int block = 0; block < CodeLayout<F>::kBlocks; ++block, ++out) {
      CodeKind<F, Int24<F>>::DecodeCodes(p + kScaleBytes + block * kCodeBytes, out->vectors);
      out->scales[0] = ScaleRow<F, 0>(scales);
      if constexpr (Int24<F>::kParts == 2) out->scales[1] = ScaleRow<F, 1>(scales);
      scales = NextScales<F>(scales);
    }
  }
  static NIBBLE_INLINE Row Take(Row acc, typename Int24<F>::Sum sum, Row scale, const Int24Block&) {
    return Int24<F>::Take(acc, sum, scale);
  }
};

}  // namespace
}  // namespace avx512_batch

CodeRuns Avx512BatchRuns() {
  using namespace avx512_batch;
  return {.nvfp4_int24 = kBatch<Int24Kind<CodeFormat::kNvfp4>>,
          .mxfp4_int24 = kBatch<Int24Kind<CodeFormat::kMxfp4>>,
          .nvfp4_int8 = kBatch<CodeKind<CodeFormat::kNvfp4, Nvfp4Int8>>,
          .nvfp4_int16 = kBatch<CodeKind<CodeFormat::kNvfp4, Words>>,
          .mxfp4_int8 = kBatch<CodeKind<CodeFormat::kMxfp4, Mxfp4Int8>>,
          .mxfp4_int16 = kBatch<CodeKind<CodeFormat::kMxfp4, Words>>};
}

}  // namespace nibble::kernels::cpu
