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

  static int64_t Blocks(const PanelJob& job) { return job.groups * kGroupBlocks; }

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

// ---- Weights requantised to int8 with a scale per kWideK k

constexpr WordTable MakeRaisedCodes() {
  WordTable table = {};
  for (int i = 0; i < 32; ++i) table.v[i] = static_cast<uint16_t>(kDoubled[i % 16] * 16);
  return table;
}
constexpr WordTable kRaisedCodes = MakeRaisedCodes();

// vpmulhrsw(16 * code, kUnitFactor) is code * 127 / 12: what the largest code becomes in a block
// of the largest scale.
constexpr float kUnitFactor = 127.0f / 12 / 16 * 32768;

template <CodeFormat F>
struct RequantizedKind {
  using Activations = WideInt8Block;
  using Vector = __m512i;
  using Scale = PartScale;
  using Layout = CodeLayout<F>;
  static constexpr int kDigits = 1;
  static constexpr int kScaleBlocks = 0;
  static constexpr int kVectors = kWideK / 4;
  static constexpr int kParts = 1;
  static constexpr int kBlocks = kWideK / kBlockK;
  static constexpr int kGroupBlocks = 1;
  static constexpr int64_t kGroupBytes = kBlocks / Layout::kBlocks * kCodeGroupBytes<F>;
  static constexpr int kChunkBlocks = 4;

  static int64_t Blocks(const PanelJob& job) {
    return (job.groups * Layout::kBlocks + kBlocks - 1) / kBlocks;
  }
  static NIBBLE_INLINE __m512i Splat(const WideInt8Block& x, int d) {
    return SplatDword(&x.q[4 * d]);
  }
  static NIBBLE_INLINE __m512i Start(const WideInt8Block& x, int) { return SplatDword(&x.start); }
  static NIBBLE_INLINE __m512i Add(__m512i sum, __m512i codes, __m512i x) {
    return _mm512_dpbusd_epi32(sum, codes, x);
  }
  static NIBBLE_INLINE Row Take(Row acc, __m512i sum, const PartScale& scale,
                                const WideInt8Block& x) {
    const Row product = FmaRows(_mm512_castsi512_ps(sum), scale.scale, scale.magic);
    return FmaSplat(product, x.scale, acc);
  }

  // What stands beyond K is zero.
  static NIBBLE_INLINE void DecodeGroup(const PanelJob& job, int64_t, int64_t block,
                                        const std::byte* p, DecodedBlock<RequantizedKind>* out) {
    const int64_t left = job.groups * Layout::kBlocks - block * kBlocks;
    const int blocks = left < kBlocks ? static_cast<int>(left) : kBlocks;
    Row scales[kBlocks][2];
    Row largest = ZeroRow();
    for (int b = 0; b < blocks; ++b) {
      const std::byte* group = p + b / Layout::kBlocks * kCodeGroupBytes<F>;
      ScaleBytes bytes = LoadScaleBytes(group);
      for (int i = 0; i < b % Layout::kBlocks; ++i) bytes = NextScales<F>(bytes);
      scales[b][0] = ScaleRow<F, 0>(bytes);
      scales[b][1] = ScaleRow<F, Layout::kScalesPerBlock - 1>(bytes);
      largest = _mm512_max_ps(largest, _mm512_max_ps(scales[b][0], scales[b][1]));
    }
    const __mmask16 any = _mm512_cmp_ps_mask(largest, ZeroRow(), _CMP_GT_OQ);
    const Row factor = _mm512_maskz_div_ps(any, _mm512_set1_ps(kUnitFactor), largest);
    for (int b = 0; b < blocks; ++b) {
      const std::byte* group = p + b / Layout::kBlocks * kCodeGroupBytes<F>;
      const std::byte* codes = group + kScaleBytes + b % Layout::kBlocks * kCodeBytes;
      for (int half = 0; half < 2; ++half) {
        const __m512i word = _mm512_cvtps_epi32(MulRows(scales[b][half], factor));
        const __m512i factors = _mm512_or_si512(word, _mm512_slli_epi32(word, 16));
        for (int v = 2 * half; v < 2 * half + 2; ++v) {
          Requantize(_mm512_load_si512(codes + 64 * v), factors, out->vectors + 8 * b + 2 * v);
        }
      }
    }
    for (int i = 8 * blocks; i < kVectors; ++i) out->vectors[i] = _mm512_set1_epi8(-128);
    const Row scale = MulRows(largest, _mm512_set1_ps(12.0f / 127));
    out->scales[0] = {scale, MulRows(scale, _mm512_set1_ps(-kFloatMagic))};
  }

 private:
  // 8 k of 16 rows become bytes + 128.
  static NIBBLE_INLINE void Requantize(__m512i bytes, __m512i factors, __m512i* out) {
    const __m512i table = LoadTable(&kRaisedCodes);
    const auto words = [&](__m512i shifted) {
      return _mm512_mulhrs_epi16(_mm512_permutexvar_epi16(shifted, table), factors);
    };
    const auto merge = [](__m512i low, __m512i high) {
      constexpr int kSelect = 0xCA;  // of the first where the mask is set, else of the second
      const __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi16(0xFF), low,
                                                     _mm512_slli_epi16(high, 8), kSelect);
      return _mm512_xor_si512(both, _mm512_set1_epi8(-128));
    };
    out[0] = merge(words(bytes), words(_mm512_srli_epi16(bytes, 4)));
    out[1] = merge(words(_mm512_srli_epi16(bytes, 8)), words(_mm512_srli_epi16(bytes, 12)));
  }
};

}  // namespace
}  // namespace avx512_batch

CodeRuns Avx512BatchRuns() {
  using namespace avx512_batch;
  return {.nvfp4_requantized = kBatch<RequantizedKind<CodeFormat::kNvfp4>>,
          .mxfp4_requantized = kBatch<RequantizedKind<CodeFormat::kMxfp4>>,
          .nvfp4_int24 = kBatch<Int24Kind<CodeFormat::kNvfp4>>,
          .mxfp4_int24 = kBatch<Int24Kind<CodeFormat::kMxfp4>>,
          .nvfp4_int8 = kBatch<CodeKind<CodeFormat::kNvfp4, Nvfp4Int8>>,
          .nvfp4_int16 = kBatch<CodeKind<CodeFormat::kNvfp4, Words>>,
          .mxfp4_int8 = kBatch<CodeKind<CodeFormat::kMxfp4, Mxfp4Int8>>,
          .mxfp4_int16 = kBatch<CodeKind<CodeFormat::kMxfp4, Words>>};
}

}  // namespace nibble::kernels::cpu
