// Linear on AVX-512 with VNNI and VBMI, and BF16 where the processor has it: a register holds all
// 16 rows of a panel.
//
// Codes go through vpermb/vpermw tables repeated to the register's size, so that neighbouring bits
// in an index are ignored and no masks are needed.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

#define NIBBLE_INLINE inline __attribute__((always_inline))

namespace nibble::kernels::cpu {
namespace avx512 {
namespace {

using Row = __m512;

NIBBLE_INLINE Row ZeroRow() { return _mm512_setzero_ps(); }
NIBBLE_INLINE Row LoadRow(const float* p) { return _mm512_loadu_ps(p); }
NIBBLE_INLINE void StoreRow(Row row, float* p) { _mm512_storeu_ps(p, row); }
NIBBLE_INLINE Row AddRows(Row a, Row b) { return _mm512_add_ps(a, b); }
NIBBLE_INLINE Row FmaRows(Row a, Row b, Row c) { return _mm512_fmadd_ps(a, b, c); }
NIBBLE_INLINE Row FmaSplat(Row a, float b, Row c) {
  return _mm512_fmadd_ps(a, _mm512_set1_ps(b), c);
}

// ---- Tables

constexpr int8_t kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct alignas(64) ByteTable {
  uint8_t v[64];
};
struct alignas(64) WordTable {
  uint16_t v[32];
};

constexpr uint16_t Bf16OfSmallInteger(int value) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(value)) >> 16);
}

constexpr ByteTable MakeOffsetCodes() {
  ByteTable table = {};
  for (int i = 0; i < 64; ++i) table.v[i] = static_cast<uint8_t>(kDoubled[i % 16] + kCodeOffset);
  return table;
}
constexpr WordTable MakeBf16Codes() {
  WordTable table = {};
  for (int i = 0; i < 32; ++i) table.v[i] = Bf16OfSmallInteger(kDoubled[i % 16]);
  return table;
}

// BF16 bits of the E4M3 magnitude `code`, 0..127. Every one of them is exact.
constexpr uint16_t Bf16OfFp8(int code) {
  if (code == 0x7F) return 0x7FC0;
  const int mantissa = code & 7;
  if (code >= 8) return static_cast<uint16_t>((code >> 3) + 120) << 7 | mantissa << 4;
  return static_cast<uint16_t>(
      __builtin_bit_cast(uint32_t, static_cast<float>(mantissa) * 0x1p-9f) >> 16);
}
constexpr ByteTable MakeFp8Bytes(int first, int shift) {
  ByteTable table = {};
  for (int i = 0; i < 64; ++i) table.v[i] = static_cast<uint8_t>(Bf16OfFp8(first + i) >> shift);
  return table;
}

constexpr ByteTable kOffsetCodes = MakeOffsetCodes();
constexpr WordTable kBf16Codes = MakeBf16Codes();
constexpr ByteTable kFp8LowBytes[2] = {MakeFp8Bytes(0, 0), MakeFp8Bytes(64, 0)};
constexpr ByteTable kFp8HighBytes[2] = {MakeFp8Bytes(0, 8), MakeFp8Bytes(64, 8)};

NIBBLE_INLINE __m512i LoadTable(const void* table) { return _mm512_load_si512(table); }

// ---- Scales: bytes of a dword, shifted into an FP32's exponent (and mantissa)

using ScaleBytes = __m512i;

NIBBLE_INLINE ScaleBytes LoadScaleBytes(const std::byte* group) { return _mm512_load_si512(group); }

template <CodeFormat F>
NIBBLE_INLINE ScaleBytes NextScales(ScaleBytes bytes) {
  return _mm512_srli_epi32(bytes, 8 * CodeLayout<F>::kScalesPerBlock);
}

template <CodeFormat F, int I>
NIBBLE_INLINE Row ScaleRow(ScaleBytes bytes) {
  constexpr int kShift = F == CodeFormat::kNvfp4 ? 20 : 23;
  const __m512i mask = _mm512_set1_epi32(0xFF << kShift);
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_slli_epi32(bytes, kShift - 8 * I), mask));
}

// ---- Integer products

struct Codes {
  __m512i w[8];  // dword d of the activations meets w[d]
};

NIBBLE_INLINE Codes DecodeCodes(const std::byte* p) {
  const __m512i table = LoadTable(&kOffsetCodes);
  Codes codes;
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const __m512i bytes = _mm512_load_si512(p + 64 * v);
    codes.w[2 * v] = _mm512_permutexvar_epi8(bytes, table);
    codes.w[2 * v + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(bytes, 4), table);
  }
  return codes;
}

struct Scales {
  Row first;
  Row first_magic;  // -kFloatMagic * first: turns an integer sum into a scaled float
  Row second;
  Row second_magic;
};

template <CodeFormat F>
NIBBLE_INLINE Scales LoadScales(ScaleBytes bytes) {
  const Row magic = _mm512_set1_ps(-kFloatMagic);
  Scales scales;
  scales.first = ScaleRow<F, 0>(bytes);
  scales.first_magic = _mm512_mul_ps(scales.first, magic);
  if constexpr (CodeLayout<F>::kScalesPerBlock == 2) {
    scales.second = ScaleRow<F, 1>(bytes);
    scales.second_magic = _mm512_mul_ps(scales.second, magic);
  }
  return scales;
}

NIBBLE_INLINE __m512i SplatDword(const void* p) {
  int32_t dword;
  __builtin_memcpy(&dword, p, sizeof(dword));
  return _mm512_set1_epi32(dword);
}

// kFloatMagic + the dot over dwords [Begin, End), as a float.
template <int Begin, int End>
NIBBLE_INLINE Row Dot(const Codes& codes, const Int8Block& x, const int32_t* start) {
  __m512i sum = SplatDword(start);
#pragma GCC unroll 8
  for (int d = Begin; d < End; ++d) {
    sum = _mm512_dpbusd_epi32(sum, codes.w[d], SplatDword(&x.q[4 * d]));
  }
  return _mm512_castsi512_ps(sum);
}

template <CodeFormat F>
NIBBLE_INLINE Row BlockSum(const Codes& codes, const Scales& scales, const Int8Block& x) {
  if constexpr (F == CodeFormat::kNvfp4) {
    const Row first =
        FmaRows(Dot<0, 4>(codes, x, &x.half_start[0]), scales.first, scales.first_magic);
    const Row second =
        FmaRows(Dot<4, 8>(codes, x, &x.half_start[1]), scales.second, scales.second_magic);
    return AddRows(first, second);
  } else {
    return FmaRows(Dot<0, 8>(codes, x, &x.start), scales.first, scales.first_magic);
  }
}

// ---- BF16 products

using Pairs = __m512i;

NIBBLE_INLINE Row PairDot(Pairs w, const uint16_t* x, Row c) {
  return _mm512_dpbf16_ps(c, (__m512bh)w, (__m512bh)SplatDword(x));
}

template <int P>
NIBBLE_INLINE Pairs CodePair(const std::byte* p) {
  const __m512i bytes = _mm512_load_si512(p + P / 4 * 64);
  return _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4 * (P % 4)), LoadTable(&kBf16Codes));
}

template <int P>
NIBBLE_INLINE Pairs Bf16Pair(const std::byte* p) {
  return _mm512_load_si512(p + P * 64);
}

template <int P>
NIBBLE_INLINE Pairs Fp8Pair(const std::byte* p) {
  const __m512i codes = _mm512_load_si512(p + P / 2 * 64);
  const __m512i low =
      _mm512_permutex2var_epi8(LoadTable(&kFp8LowBytes[0]), codes, LoadTable(&kFp8LowBytes[1]));
  const __m512i magnitude =
      _mm512_permutex2var_epi8(LoadTable(&kFp8HighBytes[0]), codes, LoadTable(&kFp8HighBytes[1]));
  const __m512i sign = _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
  const __m512i high = _mm512_or_si512(magnitude, sign);
  return P % 2 == 0 ? _mm512_unpacklo_epi8(low, high) : _mm512_unpackhi_epi8(low, high);
}

NIBBLE_INLINE Row WidenHalfs(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

#include "kernels/cpu/linear/panel_loops.inc"

constexpr LinearKernels kKernels = {
    .name = "avx512",
    .prepare_int8 = PrepareInt8,
    .prepare_bf16 = PrepareBf16,
    .prepare_f32 = PrepareF32,
    // 14 accumulators beside 8 registers of codes, 4 of scales and what the next dot needs.
    .nvfp4_int8 = MakeKernel<CodesInt8<CodeFormat::kNvfp4>, 1, 2, 3, 4, 6, 8, 10, 12, 14>(),
    .nvfp4_bf16 = MakeKernel<CodesBf16<CodeFormat::kNvfp4>, 1, 2, 4, 8, 12>(),
    .mxfp4_int8 = MakeKernel<CodesInt8<CodeFormat::kMxfp4>, 1, 2, 4, 8, 14>(),
    .mxfp4_bf16 = MakeKernel<CodesBf16<CodeFormat::kMxfp4>, 1, 4, 12>(),
    .bf16 = MakeKernel<DenseBf16, 1, 2, 4, 8, 12>(),
    .fp8 = MakeKernel<DenseFp8, 1, 4, 12>(),
    .f16 = MakeKernel<DenseFloat<WidenF16>, 1, 4>(),
    .f32 = MakeKernel<DenseFloat<WidenF32>, 1, 4>(),
};

}  // namespace
}  // namespace avx512

const LinearKernels& Avx512Linear() { return avx512::kKernels; }

const LinearKernels& Avx512VnniLinear() {
  static const LinearKernels kernels = [] {
    LinearKernels mixed = avx512::kKernels;
    const LinearKernels& avx2 = Avx2Linear();
    mixed.nvfp4_bf16 = avx2.nvfp4_bf16;
    mixed.mxfp4_bf16 = avx2.mxfp4_bf16;
    mixed.bf16 = avx2.bf16;
    mixed.fp8 = avx2.fp8;
    return mixed;
  }();
  return kernels;
}

}  // namespace nibble::kernels::cpu
