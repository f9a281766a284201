// Linear on AVX2 with FMA and F16C: two registers hold the 16 rows of a panel.
//
// 4-bit codes are linear_codes_avx2.cc's, BF16 products linear_float_avx2.cc's.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx2.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx2 {
namespace {

#include "kernels/cpu/linear/rows_avx2.inc"

// ---- Integer products

struct Codes {
  __m256i w[8][2];  // [dword of the activations][rows 0..7, 8..15]
};

// Sums over 16 k, per pair of k in 16 bits, widened.
template <int Begin>
NIBBLE_INLINE IntRow Dot16(const Codes& codes, const int8_t* q) {
  __m256i a = _mm256_setzero_si256();
  __m256i b = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int d = Begin; d < Begin + 4; ++d) {
    const __m256i activations = SplatDword(q + 4 * d);
    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(codes.w[d][0], activations));
    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(codes.w[d][1], activations));
  }
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones)};
}

// ---- What panel_loops.inc wants of BF16 products

struct Pairs {
  Row low;
  Row high;
};

using PairBlock = F32Block;

[[maybe_unused]] NIBBLE_INLINE Row PairDot(const Pairs& w, const float* x, Row c) {
  return FmaSplat(w.low, x[0], FmaSplat(w.high, x[1], c));
}

NIBBLE_INLINE Row WidenHalfs(const std::byte* p) {
  const __m256i halfs = Load256(p);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halfs)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(halfs, 1))};
}

// ---- Integer weights

NIBBLE_INLINE Row LoadMaskedRow(const std::byte* p, uint32_t mask) {
  const __m256i splat = _mm256_set1_epi32(static_cast<int>(mask));
  return {_mm256_castsi256_ps(_mm256_and_si256(Load256(p), splat)),
          _mm256_castsi256_ps(_mm256_and_si256(Load256(p + 32), splat))};
}

using Zeros = IntRow;
NIBBLE_INLINE Zeros LoadZeros(const std::byte* p) {
  const __m256i mask = _mm256_set1_epi32(0xFF);
  return {_mm256_and_si256(Load256(p), mask), _mm256_and_si256(Load256(p + 32), mask)};
}

template <bool kHigh>
NIBBLE_INLINE __m256i Nibbles(__m256i bytes) {
  return _mm256_and_si256(kHigh ? _mm256_srli_epi16(bytes, 4) : bytes, _mm256_set1_epi8(0x0F));
}

using IntCodes = Codes;

template <int kBits>
NIBBLE_INLINE IntCodes DecodeInts(const std::byte* p) {
  IntCodes codes;
#pragma GCC unroll 8
  for (int d = 0; d < 8; ++d) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      if constexpr (kBits == 4) {
        const __m256i bytes = Load256(p + d / 2 * 64 + 32 * half);
        codes.w[d][half] = d % 2 == 0 ? Nibbles<false>(bytes) : Nibbles<true>(bytes);
      } else {
        codes.w[d][half] = Load256(p + d * 64 + 32 * half);
      }
    }
  }
  return codes;
}

// Adds the products of 8-bit codes with one dword of activations: in words, even k and odd k apart,
// for 255 * 127 * 2 is too much for vpmaddubsw.
NIBBLE_INLINE __m256i AddWordProducts(__m256i codes, __m256i activations, __m256i sum) {
  const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(activations, 8), 8);
  const __m256i odd = _mm256_srai_epi16(activations, 8);
  const __m256i even_codes = _mm256_and_si256(codes, _mm256_set1_epi16(0xFF));
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even_codes, even));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), odd));
}

// The zero point in the low word of a dword meets -sum(q) in the low word of the other.
template <int kBits>
NIBBLE_INLINE Row IntSum(const IntCodes& codes, const Zeros& zeros, const Int8SumBlock& x) {
  const __m256i minus_sum = SplatDword(&x.minus_sum);
  IntRow sum = {_mm256_madd_epi16(zeros.a, minus_sum), _mm256_madd_epi16(zeros.b, minus_sum)};
  if constexpr (kBits == 4) {
    // |a sum over 16 k| <= 15 * 127 * 2 * 4 fits 16 bits.
    const IntRow first = Dot16<0>(codes, x.q);
    const IntRow second = Dot16<4>(codes, x.q);
    sum.a = _mm256_add_epi32(sum.a, _mm256_add_epi32(first.a, second.a));
    sum.b = _mm256_add_epi32(sum.b, _mm256_add_epi32(first.b, second.b));
  } else {
#pragma GCC unroll 8
    for (int d = 0; d < 8; ++d) {
      const __m256i activations = SplatDword(&x.q[4 * d]);
      sum.a = AddWordProducts(codes.w[d][0], activations, sum.a);
      sum.b = AddWordProducts(codes.w[d][1], activations, sum.b);
    }
  }
  return {_mm256_cvtepi32_ps(sum.a), _mm256_cvtepi32_ps(sum.b)};
}

// Digit by digit from the highest: what is there counts 256 times as much as the next.
template <int kBits>
NIBBLE_INLINE Row IntSum(const IntCodes& codes, const Zeros& zeros, const Int24SumBlock& x) {
  static_assert(kBits == 4);
  const __m256i minus_sum = SplatDword(&x.minus_sum);
  IntRow sum = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 3
  for (int digit = 0; digit < 3; ++digit) {
    // |a sum over 16 k| <= 15 * 128 * 2 * 4 fits 16 bits.
    const IntRow first = Dot16<0>(codes, x.digits[digit]);
    const IntRow second = Dot16<4>(codes, x.digits[digit]);
    sum.a = _mm256_add_epi32(_mm256_slli_epi32(sum.a, 8), _mm256_add_epi32(first.a, second.a));
    sum.b = _mm256_add_epi32(_mm256_slli_epi32(sum.b, 8), _mm256_add_epi32(first.b, second.b));
  }
  sum.a = _mm256_add_epi32(sum.a, _mm256_mullo_epi32(zeros.a, minus_sum));
  sum.b = _mm256_add_epi32(sum.b, _mm256_mullo_epi32(zeros.b, minus_sum));
  return {_mm256_cvtepi32_ps(sum.a), _mm256_cvtepi32_ps(sum.b)};
}

#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/panel_loops.inc"
//
#include "kernels/cpu/linear/prepare_loops.inc"
//
#include "kernels/cpu/linear/int_sum_loops.inc"

// ---- Probes: enough independent sums to hide the latency of a product

constexpr int kProbeSums = 10;

int64_t ProbeInt8(int64_t iterations) {
  __m256i sums[kProbeSums] = {};
  // Each sum starts as a secret, or the compiler would compute one for all.
  for (__m256i& sum : sums) asm volatile("" : "+x"(sum));
  __m256i a = _mm256_set1_epi8(1);
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile("" : "+x"(a));  // keeps the compiler from seeing through the loop
#pragma GCC unroll 10
    for (__m256i& sum : sums) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, a));
  }
  for (__m256i& sum : sums) asm volatile("" ::"x"(sum));
  return iterations * kProbeSums * 32 * 2;
}

int64_t ProbeBf16(int64_t iterations) {
  __m256 sums[kProbeSums] = {};
  // Each sum starts as a secret, or the compiler would compute one for all.
  for (__m256& sum : sums) asm volatile("" : "+x"(sum));
  __m256 a = _mm256_set1_ps(1.0f);
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile("" : "+x"(a));
#pragma GCC unroll 10
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(a, a, sum);
  }
  for (__m256& sum : sums) asm volatile("" ::"x"(sum));
  return iterations * kProbeSums * 8 * 2;
}

int64_t ProbeInt16(int64_t iterations) {
  __m256i sums[kProbeSums] = {};
  for (__m256i& sum : sums) asm volatile("" : "+x"(sum));
  __m256i a = _mm256_set1_epi8(1);
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile("" : "+x"(a));
#pragma GCC unroll 10
    for (__m256i& sum : sums) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, a));
  }
  for (__m256i& sum : sums) asm volatile("" ::"x"(sum));
  return iterations * kProbeSums * 16 * 2;
}

template <int kBits, typename Block>
void RunFewInts(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  (job.m == 1 ? StreamIntSums<kBits, Block>
              : RunPanels<IntSums<kBits, Block>, 1, 2, 4>)(job, panel_begin, panel_end);
}
template <int kBits, typename Block>
constexpr PanelKernel IntKernel() {
  PanelKernel kernel = MakeKernel<IntSums<kBits, Block>, 1, 2, 4>();
  kernel.run_one_tile = RunFewInts<kBits, Block>;
  return kernel;
}

constexpr LinearKernels kOwnKernels = {
    .name = "avx2",
    .int8_probe = ProbeInt8,
    .int16_probe = ProbeInt16,
    .bf16_probe = ProbeBf16,
    .prepare_int8 = PrepareInt8<Int8Block>,
    .prepare_int8_sum = PrepareInt8<Int8SumBlock>,
    .prepare_digits = PrepareInt16<DigitBlock>,
    .prepare_int24 = PrepareInt24,
    .prepare_int24_sum = PrepareInt24Sum,
    .prepare_bf16 = PrepareBf16,
    .bf16_block_bytes = sizeof(PairBlock),
    .prepare_f32 = PrepareF32,
    .f16 = MakeKernel<DenseFloat<WidenF16>, 1, 4>(),
    .f32 = MakeKernel<DenseFloat<WidenF32>, 1, 4>(),
    .int4_int8 = IntKernel<4, Int8SumBlock>(),
    .int4_int24 = IntKernel<4, Int24SumBlock>(),
    .int8_int8 = IntKernel<8, Int8SumBlock>(),
};

LinearKernels MakeTable() {
  LinearKernels kernels = kOwnKernels;
  const CodeKernels codes = Avx2CodeKernels();
  kernels.nvfp4_int8 = codes.nvfp4_int8;
  kernels.nvfp4_digits = codes.nvfp4_digits;
  kernels.nvfp4_int24 = codes.nvfp4_int24;
  kernels.mxfp4_int8 = codes.mxfp4_int8;
  kernels.mxfp4_digits = codes.mxfp4_digits;
  kernels.mxfp4_int24 = codes.mxfp4_int24;
  const FloatKernels floats = Avx2FloatKernels();
  kernels.bf16 = floats.bf16;
  kernels.fp8 = floats.fp8;
  kernels.int8_bf16 = floats.int8_bf16;
  return kernels;
}

}  // namespace
}  // namespace avx2

const LinearKernels& Avx2Linear() {
  static const LinearKernels kernels = avx2::MakeTable();
  return kernels;
}

}  // namespace nibble::kernels::cpu
