// INT4 and INT8 weights times integer activations, INT4 times BF16 as fixed point, on AVX-512 with
// VNNI.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512_int {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/batch_avx512.inc"
//
#include "kernels/cpu/linear/int_panels_avx512.inc"

// What both kinds of activations share: 32 k of a panel become eight vectors of unsigned bytes.
template <int kBits>
struct IntProducts : IntPanels<kBits> {
  using Vector = __m512i;
  using Sum = __m512i;
  static constexpr int kVectors = 8;
  static constexpr int kParts = 1;
  static constexpr int kScaleBlocks = 0;

  // INT4 codes lose their zero points here, plus kInt4Offset.
  static NIBBLE_INLINE void DecodeCodes(const std::byte* p, Zeros zeros, __m512i* vectors) {
    if constexpr (kBits == 4) {
      const __m512i offset = _mm512_mullo_epi32(
          _mm512_sub_epi32(_mm512_set1_epi32(kInt4Offset), zeros), _mm512_set1_epi32(0x01010101));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512i bytes = _mm512_load_si512(p + 64 * v);
        vectors[2 * v] = _mm512_add_epi8(Nibbles<false>(bytes), offset);
        vectors[2 * v + 1] = _mm512_add_epi8(Nibbles<true>(bytes), offset);
      }
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) vectors[v] = _mm512_load_si512(p + 64 * v);
    }
  }
  static NIBBLE_INLINE Sum Add(Sum sum, __m512i codes, __m512i x) {
    return _mm512_dpbusd_epi32(sum, codes, x);
  }
};

// Sums start at kFloatMagic. What takes it back, scale * kFloatMagic, is exact where scales have 11
// bits; those stored in FP32 (kWide) take one operation more.
template <int kBits, bool kWide>
struct IntInt8Kind : IntProducts<kBits> {
  using Activations = Int8SumBlock;
  static constexpr int kDigits = 1;
  static constexpr int kChunkBlocks = 16;
  struct Scale {
    Row scale;
    Row magic;
    Zeros zeros;
  };

  static NIBBLE_INLINE void DecodeGroup(const PanelJob& job, int64_t panel, int64_t block,
                                        const std::byte* p, DecodedBlock<IntInt8Kind>* out) {
    Decode(HeaderOf<kBits>(job, panel, block), p, out);
  }
  static NIBBLE_INLINE void Decode(const IntHeader& header, const std::byte* p,
                                   DecodedBlock<IntInt8Kind>* out) {
    IntProducts<kBits>::DecodeCodes(p, header.zeros, out->vectors);
    out->scales[0] = {header.scale, MulRows(header.scale, _mm512_set1_ps(-kFloatMagic)),
                      header.zeros};
  }
  static NIBBLE_INLINE __m512i Splat(const Int8SumBlock& x, int d) {
    return SplatDword(&x.q[4 * d]);
  }
  static NIBBLE_INLINE __m512i Start(const Int8SumBlock& x, int) {
    return kBits == 4 ? SplatDword(&x.start) : _mm512_set1_epi32(kFloatMagicBits);
  }
  static NIBBLE_INLINE Row Take(Row acc, __m512i sum, const Scale& scale, const Int8SumBlock& x) {
    // The zero point in the low word of a dword meets -sum(q) in the low word of the other.
    if constexpr (kBits == 8) {
      sum = _mm512_dpwssd_epi32(sum, scale.zeros, SplatDword(&x.minus_sum));
    }
    const Row shifted = _mm512_castsi512_ps(sum);
    const Row product =
        kWide ? MulRows(_mm512_sub_ps(shifted, _mm512_set1_ps(kFloatMagic)), scale.scale)
              : FmaRows(shifted, scale.scale, scale.magic);
    return FmaSplat(product, x.scale, acc);
  }
};

// Digit by digit from the highest, as Int24Products does.
struct Int4Bf16Kind : IntProducts<4> {
  using Activations = Int24SumBlock;
  static constexpr int kDigits = 3;
  static constexpr int kChunkBlocks = 8;  // its activations are large
  using Scale = Row;

  static NIBBLE_INLINE void DecodeGroup(const PanelJob& job, int64_t panel, int64_t block,
                                        const std::byte* p, DecodedBlock<Int4Bf16Kind>* out) {
    Decode(HeaderOf<4>(job, panel, block), p, out);
  }
  static NIBBLE_INLINE void Decode(const IntHeader& header, const std::byte* p,
                                   DecodedBlock<Int4Bf16Kind>* out) {
    DecodeCodes(p, header.zeros, out->vectors);
    out->scales[0] = header.scale;
  }
  static NIBBLE_INLINE __m512i Splat(const Int24SumBlock& x, int d, int digit) {
    return SplatDword(&x.digits[digit][4 * d]);
  }
  // The start comes in by bytes with the shifts, its highest half first; what stands above that
  // half is shifted out.
  static NIBBLE_INLINE __m512i Start(const Int24SumBlock& x, int) {
    return SplatDword(reinterpret_cast<const std::byte*>(&x.start) + 2);
  }
  static NIBBLE_INLINE __m512i Shift(__m512i sum, const Int24SumBlock& x, int, int digit) {
    const auto* start = reinterpret_cast<const std::byte*>(&x.start);
    return _mm512_shldi_epi32(sum, SplatDword(start - 1 - digit), 8);
  }
  static NIBBLE_INLINE Row Take(Row acc, __m512i sum, Row scale, const Int24SumBlock& x) {
    return FmaSplat(MulRows(_mm512_cvtepi32_ps(sum), scale), x.scale, acc);
  }
};

// ---- One tile of few tokens: two panels stream by and are decoded in registers

template <typename Kind, int T>
void RunPair(const PanelJob& job, int64_t panel, int panels) {
  const auto* x = reinterpret_cast<const typename Kind::Activations*>(job.activations);
  const std::byte* w = job.weights + panel * job.panel_bytes;
  // A last single panel is its own neighbour.
  const int64_t second = panels == 2 ? job.panel_bytes : 0;
  const std::byte* const end = w + job.panel_bytes;
  Row acc[2 * T];
#pragma GCC unroll 16
  for (int i = 0; i < 2 * T; ++i) acc[i] = ZeroRow();
  for (int64_t block = 0; block < job.groups;) {
    PrefetchStream<kIntHeaderBytes>(w, end - w, job.panel_bytes);
    PrefetchStream<kIntHeaderBytes>(w + second, end - w, job.panel_bytes);
    const IntHeader headers[2] = {LoadHeader(job, w), LoadHeader(job, w + second)};
    w += job.header_bytes;
    const int64_t left = job.groups - block;
    const int64_t count = left < job.blocks_per_scale ? left : job.blocks_per_scale;
    block += count;
    for (int64_t i = 0; i < count; ++i, w += Kind::kGroupBytes, x += T) {
      PrefetchStream<Kind::kGroupBytes>(w, end - w, job.panel_bytes);
      PrefetchStream<Kind::kGroupBytes>(w + second, end - w, job.panel_bytes);
      DecodedBlock<Kind> decoded[2];
      Kind::Decode(headers[0], w, &decoded[0]);
      Kind::Decode(headers[1], w + second, &decoded[1]);
      AddBlock<Kind, T>(decoded[0], decoded[1], x, acc);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 2 * T; ++i) {
    if (i / 2 < job.m && i % 2 < panels) StoreOutput(job, panel + i % 2, i / 2, acc[i]);
  }
}

template <typename Kind, int... kSizes>
void RunStream(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  const int64_t slots = job.wide_tokens > 0 ? job.tile : job.last_tile;
  for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
    const int panels = panel + 1 < panel_end ? 2 : 1;
    static_cast<void>(
        ((slots == kSizes && (RunPair<Kind, kSizes>(job, panel, panels), true)) || ...));
  }
}

template <typename Kind>
constexpr PanelRun kStream = RunStream<Kind, 1, 2, 3, 4, 5, 6, 7, 8>;

template <int kBits>
void StreamIntInt8(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  const bool wide = job.header_bytes > kIntHeaderBytes;
  (wide ? kStream<IntInt8Kind<kBits, true>> : kStream<IntInt8Kind<kBits, false>>)(job, panel_begin,
                                                                                  panel_end);
}

template <int kBits>
void RunIntInt8(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  const bool wide = job.header_bytes > kIntHeaderBytes;
  (wide ? kBatch<IntInt8Kind<kBits, true>> : kBatch<IntInt8Kind<kBits, false>>)(job, panel_begin,
                                                                                panel_end);
}

}  // namespace
}  // namespace avx512_int

IntRuns Avx512IntStreamRuns() {
  using namespace avx512_int;
  return {.int4_int8 = StreamIntInt8<4>,
          .int4_int24 = kStream<Int4Bf16Kind>,
          .int8_int8 = StreamIntInt8<8>};
}

IntRuns Avx512IntBatchRuns() {
  using namespace avx512_int;
  return {
      .int4_int8 = RunIntInt8<4>, .int4_int24 = kBatch<Int4Bf16Kind>, .int8_int8 = RunIntInt8<8>};
}

}  // namespace nibble::kernels::cpu
