// Native operations of simd.h: one zmm register. Include once, before simd.h.
#pragma once

// g++ 12 takes the deliberately undefined operands inside its own intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <immintrin.h>

#include <cstdint>

#ifndef NIBBLE_ISA
#define NIBBLE_ISA avx512
#define NIBBLE_MULTIPLIES_PAIRS false
#endif
#define NIBBLE_NATIVE static inline __attribute__((always_inline))

namespace nibble::kernels::NIBBLE_ISA {

using NativeF = __m512;
using NativeI = __m512i;
using NativeMask = __mmask16;
constexpr int kNativeLanes = 16;
constexpr int kCodesAtOnce = 64;   // of NativeE4M3ToF16
constexpr bool kWidensF16 = true;  // by one instruction
constexpr bool kMultipliesPairs = NIBBLE_MULTIPLIES_PAIRS;

// Tile of the attention kernel, in rows and in vectors: 16 accumulators of 32 registers.
constexpr int kTileRows = 4;
constexpr int kTileBlocks = 4;  // of keys
constexpr int kTilePairs = 2;   // of values, 32 elements each

NIBBLE_NATIVE NativeF NativeSet(float x) { return _mm512_set1_ps(x); }
NIBBLE_NATIVE NativeI NativeSetInt(int32_t x) { return _mm512_set1_epi32(x); }
NIBBLE_NATIVE NativeF NativeAdd(NativeF a, NativeF b) { return _mm512_add_ps(a, b); }
NIBBLE_NATIVE NativeF NativeSub(NativeF a, NativeF b) { return _mm512_sub_ps(a, b); }
NIBBLE_NATIVE NativeF NativeMul(NativeF a, NativeF b) { return _mm512_mul_ps(a, b); }
NIBBLE_NATIVE NativeF NativeDiv(NativeF a, NativeF b) { return _mm512_div_ps(a, b); }
NIBBLE_NATIVE NativeF NativeMax(NativeF a, NativeF b) { return _mm512_max_ps(a, b); }
NIBBLE_NATIVE NativeF NativeMin(NativeF a, NativeF b) { return _mm512_min_ps(a, b); }
NIBBLE_NATIVE NativeF NativeFma(NativeF a, NativeF b, NativeF c) {
  return _mm512_fmadd_ps(a, b, c);
}
NIBBLE_NATIVE NativeI NativeAddInt(NativeI a, NativeI b) { return _mm512_add_epi32(a, b); }
NIBBLE_NATIVE NativeI NativeSubInt(NativeI a, NativeI b) { return _mm512_sub_epi32(a, b); }
NIBBLE_NATIVE NativeI NativeAnd(NativeI a, NativeI b) { return _mm512_and_si512(a, b); }
NIBBLE_NATIVE NativeI NativeOr(NativeI a, NativeI b) { return _mm512_or_si512(a, b); }
NIBBLE_NATIVE NativeMask NativeLess(NativeF a, NativeF b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
NIBBLE_NATIVE NativeMask NativeEqual(NativeF a, NativeF b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
NIBBLE_NATIVE NativeMask NativeLessInt(NativeI a, NativeI b) {
  return _mm512_cmplt_epi32_mask(a, b);
}
NIBBLE_NATIVE NativeF NativeSelect(NativeMask m, NativeF yes, NativeF no) {
  return _mm512_mask_blend_ps(m, no, yes);
}
NIBBLE_NATIVE NativeI NativeSelectInt(NativeMask m, NativeI yes, NativeI no) {
  return _mm512_mask_blend_epi32(m, no, yes);
}
NIBBLE_NATIVE uint32_t NativeMaskBits(NativeMask m) { return m; }
NIBBLE_NATIVE NativeI NativeBits(NativeF a) { return _mm512_castps_si512(a); }
NIBBLE_NATIVE NativeF NativeFromBits(NativeI a) { return _mm512_castsi512_ps(a); }
template <int kShift>
NIBBLE_NATIVE NativeI NativeShiftLeft(NativeI a) {
  return _mm512_slli_epi32(a, kShift);
}
template <int kShift>
NIBBLE_NATIVE NativeI NativeShiftRight(NativeI a) {
  return _mm512_srli_epi32(a, kShift);
}

NIBBLE_NATIVE NativeF NativeLoadF32(const float* p) { return _mm512_loadu_ps(p); }
NIBBLE_NATIVE void NativeStoreF32(float* p, NativeF a) { _mm512_storeu_ps(p, a); }
NIBBLE_NATIVE void NativeStoreI32(int32_t* p, NativeI a) { _mm512_storeu_si512(p, a); }
NIBBLE_NATIVE NativeI NativeLoadI32(const int32_t* p) { return _mm512_loadu_si512(p); }
NIBBLE_NATIVE NativeI NativeLoadU16(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
NIBBLE_NATIVE void NativeStoreU16(uint16_t* p, NativeI a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
}
NIBBLE_NATIVE void NativeStoreU8(uint8_t* p, NativeI a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}
NIBBLE_NATIVE NativeF NativeLoadE4M3(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i half =
      _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xBF80)));
  return _mm512_cvtph_ps(half);
}

NIBBLE_NATIVE NativeF NativeLoadF16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Codes in the upper bytes of words, as FP16 of value * 2^-8.
NIBBLE_NATIVE __m512i HalvesOfUpperBytes(__m512i words) {
  return _mm512_and_si512(_mm512_srai_epi16(words, 1),
                          _mm512_set1_epi16(static_cast<short>(0xBF80)));
}

// kCodesAtOnce codes as FP16 of value * 2^-8: the even ones, then the odd ones.
NIBBLE_NATIVE void NativeE4M3ToF16(const uint8_t* codes, uint16_t* out) {
  const __m512i both = _mm512_loadu_si512(codes);
  _mm512_storeu_si512(out, HalvesOfUpperBytes(_mm512_slli_epi16(both, 8)));
  _mm512_storeu_si512(out + 32, HalvesOfUpperBytes(both));
}

// The bytes of the BF16 of value * 2^-8, by the seven lower bits of a code.
struct E4M3Bytes {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};
constexpr E4M3Bytes MakeE4M3Bytes() {
  constexpr uint16_t kSubnormals[8] = {0, 0x3700, 0x3780, 0x37C0, 0x3800, 0x3820, 0x3840, 0x3860};
  E4M3Bytes bytes = {};
  for (int code = 0; code < 128; ++code) {
    const int bits = code < 8 ? kSubnormals[code] : (code << 4) + (112 << 7);
    bytes.low[code] = static_cast<uint8_t>(bits);
    bytes.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return bytes;
}
static constexpr E4M3Bytes kE4M3Bytes = MakeE4M3Bytes();

struct Bf16Bytes {
  __m512i low;
  __m512i high;
};
NIBBLE_NATIVE Bf16Bytes BytesOfE4M3(__m512i codes) {
  const auto look_up = [codes](const uint8_t* table) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), codes, _mm512_load_si512(table + 64));
  };
  // high | (codes & 0x80)
  return {look_up(kE4M3Bytes.low),
          _mm512_ternarylogic_epi32(look_up(kE4M3Bytes.high), codes,
                                    _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8)};
}

// Thirty-two codes as BF16 of value * 2^-8, two per dword.
NIBBLE_NATIVE NativeI NativeLoadE4M3Pairs(const uint8_t* p) {
  const __m512i codes =
      _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const Bf16Bytes bytes =
      BytesOfE4M3(_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 0, 2, 0, 3, 0), codes));
  return _mm512_unpacklo_epi8(bytes.low, bytes.high);
}

// The same of half `half` of 64 codes; for both halves most of the work is common.
NIBBLE_NATIVE NativeI NativeHalfOfE4M3Pairs(const uint8_t* codes, int half) {
  const Bf16Bytes bytes = BytesOfE4M3(_mm512_permutexvar_epi64(
      _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), _mm512_loadu_si512(codes)));
  return half == 0 ? _mm512_unpacklo_epi8(bytes.low, bytes.high)
                   : _mm512_unpackhi_epi8(bytes.low, bytes.high);
}

#if NIBBLE_MULTIPLIES_PAIRS
// Lane i: fma(a[2i], b[2i], fma(a[2i + 1], b[2i + 1], sum[i])) of BF16; subnormals count as zero.
NIBBLE_NATIVE NativeF NativeFmaPairs(NativeI a, NativeI b, NativeF sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#endif

NIBBLE_NATIVE float NativeSum(NativeF a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
NIBBLE_NATIVE float NativeLargest(NativeF a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Lane i: NativeSum(rows[i]).
NIBBLE_NATIVE NativeF NativeSumRows(const NativeF (&rows)[16]) {
  __m512 sums[16];
  for (int i = 0; i < 16; ++i) sums[i] = rows[i % 4 * 4 + i / 4];  // so that rows end in order
  for (int i = 0; i < 8; ++i)
    sums[i] = _mm512_add_ps(_mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0x44),
                            _mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0xEE));
  for (int i = 0; i < 4; ++i)
    sums[i] = _mm512_add_ps(_mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0x88),
                            _mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0xDD));
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(sums[2 * i]);
    const __m512d b = _mm512_castps_pd(sums[2 * i + 1]);
    sums[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                            _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  return _mm512_add_ps(_mm512_shuffle_ps(sums[0], sums[1], 0x88),
                       _mm512_shuffle_ps(sums[0], sums[1], 0xDD));
}

// Transposes a square of kNativeLanes dwords: rows in, columns out.
NIBBLE_NATIVE void NativeTranspose(NativeI rows[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // u[g + c]: rows g .. g + 3 of columns c, 4 + c, 8 + c, 12 + c (one per 128-bit lane).
  __m512i u[16];
  for (int g = 0; g < 16; g += 4) {
    u[g] = _mm512_unpacklo_epi64(t[g], t[g + 2]);
    u[g + 1] = _mm512_unpackhi_epi64(t[g], t[g + 2]);
    u[g + 2] = _mm512_unpacklo_epi64(t[g + 1], t[g + 3]);
    u[g + 3] = _mm512_unpackhi_epi64(t[g + 1], t[g + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xDD);
    const __m512i high_odd = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xDD);
    rows[c] = _mm512_shuffle_i32x4(low, high, 0x88);
    rows[8 + c] = _mm512_shuffle_i32x4(low, high, 0xDD);
    rows[4 + c] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
    rows[12 + c] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xDD);
  }
}

}  // namespace nibble::kernels::NIBBLE_ISA
