// Native operations of simd.h: ymm registers, with FMA and F16C. Include once, before simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define NIBBLE_ISA avx2
#define NIBBLE_NATIVE static inline __attribute__((always_inline))

namespace nibble::kernels::NIBBLE_ISA {

using NativeF = __m256;
using NativeI = __m256i;
using NativeMask = __m256i;
constexpr int kNativeLanes = 8;
constexpr int kCodesAtOnce = 64;   // of NativeE4M3ToF16
constexpr bool kWidensF16 = true;  // by one instruction
constexpr bool kMultipliesPairs = false;

// Tile of the attention kernel, in rows and in vectors: 8 accumulators of 16 registers.
constexpr int kTileRows = 2;
constexpr int kTileBlocks = 2;  // of keys
constexpr int kTilePairs = 1;   // of values, 32 elements each

NIBBLE_NATIVE NativeF NativeSet(float x) { return _mm256_set1_ps(x); }
NIBBLE_NATIVE NativeI NativeSetInt(int32_t x) { return _mm256_set1_epi32(x); }
NIBBLE_NATIVE NativeF NativeAdd(NativeF a, NativeF b) { return _mm256_add_ps(a, b); }
NIBBLE_NATIVE NativeF NativeSub(NativeF a, NativeF b) { return _mm256_sub_ps(a, b); }
NIBBLE_NATIVE NativeF NativeMul(NativeF a, NativeF b) { return _mm256_mul_ps(a, b); }
NIBBLE_NATIVE NativeF NativeDiv(NativeF a, NativeF b) { return _mm256_div_ps(a, b); }
NIBBLE_NATIVE NativeF NativeMax(NativeF a, NativeF b) { return _mm256_max_ps(a, b); }
NIBBLE_NATIVE NativeF NativeMin(NativeF a, NativeF b) { return _mm256_min_ps(a, b); }
NIBBLE_NATIVE NativeF NativeFma(NativeF a, NativeF b, NativeF c) {
  return _mm256_fmadd_ps(a, b, c);
}
NIBBLE_NATIVE NativeI NativeAddInt(NativeI a, NativeI b) { return _mm256_add_epi32(a, b); }
NIBBLE_NATIVE NativeI NativeSubInt(NativeI a, NativeI b) { return _mm256_sub_epi32(a, b); }
NIBBLE_NATIVE NativeI NativeAnd(NativeI a, NativeI b) { return _mm256_and_si256(a, b); }
NIBBLE_NATIVE NativeI NativeOr(NativeI a, NativeI b) { return _mm256_or_si256(a, b); }
NIBBLE_NATIVE NativeMask NativeLess(NativeF a, NativeF b) {
  return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
NIBBLE_NATIVE NativeMask NativeEqual(NativeF a, NativeF b) {
  return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
NIBBLE_NATIVE NativeMask NativeLessInt(NativeI a, NativeI b) { return _mm256_cmpgt_epi32(b, a); }
NIBBLE_NATIVE NativeF NativeSelect(NativeMask m, NativeF yes, NativeF no) {
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m));
}
NIBBLE_NATIVE NativeI NativeSelectInt(NativeMask m, NativeI yes, NativeI no) {
  return _mm256_blendv_epi8(no, yes, m);
}
NIBBLE_NATIVE uint32_t NativeMaskBits(NativeMask m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m)));
}
NIBBLE_NATIVE NativeI NativeBits(NativeF a) { return _mm256_castps_si256(a); }
NIBBLE_NATIVE NativeF NativeFromBits(NativeI a) { return _mm256_castsi256_ps(a); }
template <int kShift>
NIBBLE_NATIVE NativeI NativeShiftLeft(NativeI a) {
  return _mm256_slli_epi32(a, kShift);
}
template <int kShift>
NIBBLE_NATIVE NativeI NativeShiftRight(NativeI a) {
  return _mm256_srli_epi32(a, kShift);
}

NIBBLE_NATIVE NativeF NativeLoadF32(const float* p) { return _mm256_loadu_ps(p); }
NIBBLE_NATIVE void NativeStoreF32(float* p, NativeF a) { _mm256_storeu_ps(p, a); }
NIBBLE_NATIVE void NativeStoreI32(int32_t* p, NativeI a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
}
NIBBLE_NATIVE NativeI NativeLoadI32(const int32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
NIBBLE_NATIVE NativeI NativeLoadU16(const uint16_t* p) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Values are at most 0xFFFF, so the saturating pack does not saturate.
NIBBLE_NATIVE __m128i NativeNarrowU16(NativeI a) {
  return _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}
NIBBLE_NATIVE void NativeStoreU16(uint16_t* p, NativeI a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), NativeNarrowU16(a));
}
NIBBLE_NATIVE void NativeStoreU8(uint8_t* p, NativeI a) {
  const __m128i words = NativeNarrowU16(a);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
NIBBLE_NATIVE NativeF NativeLoadE4M3(const uint8_t* p) {
  const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i half =
      _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<short>(0xBF80)));
  return _mm256_cvtph_ps(half);
}

NIBBLE_NATIVE NativeF NativeLoadF16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Codes in the upper bytes of words, as FP16 of value * 2^-8.
NIBBLE_NATIVE __m256i HalvesOfUpperBytes(__m256i words) {
  return _mm256_and_si256(_mm256_srai_epi16(words, 1),
                          _mm256_set1_epi16(static_cast<short>(0xBF80)));
}

// kCodesAtOnce codes as FP16 of value * 2^-8: the even ones, then the odd ones.
NIBBLE_NATIVE void NativeE4M3ToF16(const uint8_t* codes, uint16_t* out) {
  for (int i = 0; i < 2; ++i) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes) + i);
    auto* const halves = reinterpret_cast<__m256i*>(out) + i;
    _mm256_storeu_si256(halves, HalvesOfUpperBytes(_mm256_slli_epi16(both, 8)));
    _mm256_storeu_si256(halves + 2, HalvesOfUpperBytes(both));
  }
}

// Sixteen codes as BF16 of value * 2^-8, two per dword.
NIBBLE_NATIVE NativeI NativeLoadE4M3Pairs(const uint8_t* p) {
  const __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i magnitude = _mm256_and_si256(_mm256_slli_epi16(code, 4), _mm256_set1_epi16(0x7F0));
  const __m256i normal = _mm256_add_epi16(magnitude, _mm256_set1_epi16(112 << 7));
  const __m256i subnormals = _mm256_broadcastsi128_si256(
      _mm_setr_epi16(0, 0x3700, 0x3780, 0x37C0, 0x3800, 0x3820, 0x3840, 0x3860));
  const __m256i mantissa = _mm256_and_si256(code, _mm256_set1_epi16(7));
  const __m256i index = _mm256_add_epi16(_mm256_mullo_epi16(mantissa, _mm256_set1_epi16(0x202)),
                                         _mm256_set1_epi16(0x100));
  const __m256i is_subnormal = _mm256_cmpgt_epi16(_mm256_set1_epi16(0x80), magnitude);
  const __m256i bits =
      _mm256_blendv_epi8(normal, _mm256_shuffle_epi8(subnormals, index), is_subnormal);
  const __m256i sign = _mm256_and_si256(code, _mm256_set1_epi16(static_cast<short>(0x8000)));
  return _mm256_or_si256(bits, sign);
}

NIBBLE_NATIVE float NativeSum(NativeF a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
NIBBLE_NATIVE float NativeLargest(NativeF a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Lane i: NativeSum(rows[i]).
NIBBLE_NATIVE NativeF NativeSumRows(const NativeF (&rows)[8]) {
  __m256 sums[8];
  for (int i = 0; i < 8; ++i) sums[i] = rows[i % 2 * 4 + i / 2];  // so that rows end in order
  for (int i = 0; i < 4; ++i)
    sums[i] = _mm256_add_ps(_mm256_permute2f128_ps(sums[2 * i], sums[2 * i + 1], 0x20),
                            _mm256_permute2f128_ps(sums[2 * i], sums[2 * i + 1], 0x31));
  for (int i = 0; i < 2; ++i) {
    const __m256d a = _mm256_castps_pd(sums[2 * i]);
    const __m256d b = _mm256_castps_pd(sums[2 * i + 1]);
    sums[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                            _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  return _mm256_add_ps(_mm256_shuffle_ps(sums[0], sums[1], 0x88),
                       _mm256_shuffle_ps(sums[0], sums[1], 0xDD));
}

// Transposes a square of kNativeLanes dwords: rows in, columns out.
NIBBLE_NATIVE void NativeTranspose(NativeI rows[8]) {
  __m256i t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  __m256i u[8];
  for (int g = 0; g < 8; g += 4) {
    u[g] = _mm256_unpacklo_epi64(t[g], t[g + 2]);
    u[g + 1] = _mm256_unpackhi_epi64(t[g], t[g + 2]);
    u[g + 2] = _mm256_unpacklo_epi64(t[g + 1], t[g + 3]);
    u[g + 3] = _mm256_unpackhi_epi64(t[g + 1], t[g + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm256_permute2x128_si256(u[c], u[4 + c], 0x20);
    rows[4 + c] = _mm256_permute2x128_si256(u[c], u[4 + c], 0x31);
  }
}

}  // namespace nibble::kernels::NIBBLE_ISA
