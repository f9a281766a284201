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

  static NIBBLE_INLINE void DecodeGroup(const std::byte* p, DecodedBlock<CodeKind>* out) {
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

}  // namespace
}  // namespace avx512_batch

CodeRuns Avx512BatchRuns() {
  using namespace avx512_batch;
  return {.nvfp4_int8 = kBatch<CodeKind<CodeFormat::kNvfp4, Nvfp4Int8>>,
          .nvfp4_int16 = kBatch<CodeKind<CodeFormat::kNvfp4, Words>>,
          .mxfp4_int8 = kBatch<CodeKind<CodeFormat::kMxfp4, Mxfp4Int8>>,
          .mxfp4_int16 = kBatch<CodeKind<CodeFormat::kMxfp4, Words>>};
}

}  // namespace nibble::kernels::cpu
