// Linear on AVX-512 with VNNI and VBMI. A pair of BF16 products is two FP32 multiply-adds: right
// for processors without AVX512_BF16, and twice as fast as vdpbf16ps on Intel's (measured: one of
// those every two cycles, two multiply-adds per cycle).
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512 {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"

using Pairs = RowPair;
using PairBlock = F32Block;

NIBBLE_INLINE Row PairDot(const Pairs& w, const float* x, Row c) {
  return FmaSplat(w.low, x[0], FmaSplat(w.high, x[1], c));
}

NIBBLE_INLINE Pairs WidenWords(__m512i words) {
  const __m512i high = _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)));
  return {.low = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
          .high = _mm512_castsi512_ps(high)};
}
template <int P>
NIBBLE_INLINE Pairs Bf16Pair(const std::byte* p) {
  return WidenWords(Bf16Words<P>(p));
}
template <int P>
NIBBLE_INLINE Pairs Fp8Pair(const std::byte* p) {
  return WidenWords(Fp8Words<P>(p));
}
template <int kBits>
NIBBLE_INLINE PairZeros<kBits> MakePairZeros(Zeros zeros) {
  return MakeInt8Zeros(zeros);
}
template <int kBits, int P>
NIBBLE_INLINE Pairs IntPair(const std::byte* p, const PairZeros<kBits>& zeros) {
  return Int8Rows<P>(p, zeros);
}

#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/panel_loops.inc"
//
#include "kernels/cpu/linear/prepare_loops.inc"
//
#include "kernels/cpu/linear/prepare_avx512.inc"
//
#include "kernels/cpu/linear/int_loops.inc"

int64_t ProbeInt8(int64_t iterations) {
  return ProbeInts(iterations, 64,
                   [](__m512i sum, __m512i a) { return _mm512_dpbusd_epi32(sum, a, a); });
}

int64_t ProbeInt16(int64_t iterations) {
  return ProbeInts(iterations, 32,
                   [](__m512i sum, __m512i a) { return _mm512_dpwssd_epi32(sum, a, a); });
}

int64_t ProbeBf16(int64_t iterations) {
  __m512 sums[kProbeSums] = {};
  for (__m512& sum : sums) asm volatile("" : "+v"(sum));
  __m512 a = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile("" : "+v"(a));
#pragma GCC unroll 12
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(a, a, sum);
  }
  for (__m512& sum : sums) asm volatile("" ::"v"(sum));
  return iterations * kProbeSums * 16 * 2;
}

// A single tile keeps to the loops of panel_loops.inc.
template <typename Kernel>
PanelKernel FloatKernel(PanelRun batch) {
  PanelKernel kernel = MakeKernel<Kernel, 1, 2, 3, 4, 5, 6, 7>();
  kernel.run_one_tile = kernel.run;
  kernel.run = batch;
  return kernel;
}

PanelKernel CodeKernel(PanelRun stream, PanelRun batch) {
  return {.run = batch, .sizes = {1, 2, 3, 4, 5, 6, 7}, .run_one_tile = stream, .one_tile = 8};
}
PanelKernel NarrowCodeKernel(PanelRun stream, PanelRun batch) {
  return {.run = batch, .sizes = {1, 2, 3, 4, 5}, .run_one_tile = stream, .one_tile = 8};
}
PanelKernel BatchKernel(PanelRun batch) { return {.run = batch, .sizes = {1, 2, 3, 4, 5, 6, 7}}; }
PanelKernel DigitKernel(PanelRun stream) { return {.run = stream, .sizes = {1, 2, 3}}; }

// Sizes beyond the streaming kernels': those that tiles of 16 tokens lose least with.
PanelKernel TileKernel(PanelRun many, PanelRun one_tile) {
  return {.run = many, .sizes = {1, 2, 3, 4, 5, 6, 7, 12, 16}, .run_one_tile = one_tile};
}
PanelKernel TileDigitKernel(PanelRun many, PanelRun one_tile) {
  return {.run = many, .sizes = {1, 2, 3, 4, 6, 8, 12, 16}, .run_one_tile = one_tile};
}

LinearKernels MakeTable() {
  LinearKernels kernels = {
      .name = "avx512",
      .int8_probe = ProbeInt8,
      .int16_probe = ProbeInt16,
      .bf16_probe = ProbeBf16,
      .prepare_int8 = PrepareInt8<Int8Block, QuantizeRegister>,
      .prepare_int8_sum = PrepareInt8<Int8SumBlock, QuantizeRegister>,
      .prepare_int16 = PrepareInt16<Int16Block>,
      .prepare_digits = PrepareInt16<DigitBlock>,
      .prepare_int24 = PrepareInt24,
      .prepare_int24_sum = PrepareInt24Sum,
      .prepare_wide_int8 = PrepareWideInt8,
      .prepare_bf16 = PrepareBf16,
      .bf16_block_bytes = sizeof(PairBlock),
      .prepare_f32 = PrepareF32,
      .f16 = MakeKernel<DenseFloat<WidenF16>, 1, 4>(),
      .f32 = MakeKernel<DenseFloat<WidenF32>, 1, 4>(),
  };
  const FloatRuns floats = Avx512FloatBatchRuns();
  kernels.bf16 = FloatKernel<DenseBf16>(floats.bf16);
  const FloatRuns float_stream = Avx512FloatStreamRuns();
  kernels.fp8 = CodeKernel(float_stream.fp8, floats.fp8);
  kernels.int8_bf16 = CodeKernel(float_stream.int8_bf16, floats.int8_bf16);
  const IntRuns int_stream = Avx512IntStreamRuns();
  const IntRuns int_batch = Avx512IntBatchRuns();
  kernels.int4_int8 = CodeKernel(int_stream.int4_int8, int_batch.int4_int8);
  kernels.int4_int24 = CodeKernel(int_stream.int4_int24, int_batch.int4_int24);
  kernels.int8_int8 = CodeKernel(int_stream.int8_int8, int_batch.int8_int8);
  const CodeRuns stream = Avx512StreamRuns();
  const CodeRuns batch = Avx512BatchRuns();
  kernels.nvfp4_requantized = BatchKernel(batch.nvfp4_requantized);
  kernels.mxfp4_requantized = BatchKernel(batch.mxfp4_requantized);
  kernels.nvfp4_int24 = CodeKernel(stream.nvfp4_int24, batch.nvfp4_int24);
  kernels.mxfp4_int24 = CodeKernel(stream.mxfp4_int24, batch.mxfp4_int24);
  kernels.nvfp4_int8 = NarrowCodeKernel(stream.nvfp4_int8, batch.nvfp4_int8);
  kernels.nvfp4_int16 = NarrowCodeKernel(stream.nvfp4_int16, batch.nvfp4_int16);
  kernels.nvfp4_digits = DigitKernel(stream.nvfp4_digits);
  kernels.mxfp4_int8 = CodeKernel(stream.mxfp4_int8, batch.mxfp4_int8);
  kernels.mxfp4_int16 = NarrowCodeKernel(stream.mxfp4_int16, batch.mxfp4_int16);
  kernels.mxfp4_digits = DigitKernel(stream.mxfp4_digits);
  return kernels;
}

}  // namespace
}  // namespace avx512

LinearKernels WithTiles(const TileKernelRuns& runs) {
  using namespace avx512;
  LinearKernels kernels = MakeTable();
  kernels.name = "amx";
  kernels.nvfp4_int8 = TileKernel(runs.many.nvfp4_int8, runs.one_tile.nvfp4_int8);
  kernels.mxfp4_int8 = TileKernel(runs.many.mxfp4_int8, runs.one_tile.mxfp4_int8);
  kernels.nvfp4_requantized = TileKernel(runs.many.nvfp4_requantized, nullptr);
  kernels.mxfp4_requantized = TileKernel(runs.many.mxfp4_requantized, nullptr);
  kernels.nvfp4_int16 = {};  // as digits, however many tokens
  kernels.mxfp4_int16 = {};
  kernels.nvfp4_digits = TileDigitKernel(runs.many.nvfp4_digits, runs.one_tile.nvfp4_digits);
  kernels.mxfp4_digits = TileDigitKernel(runs.many.mxfp4_digits, runs.one_tile.mxfp4_digits);
  return kernels;
}

const LinearKernels& Avx512Linear() {
  static const LinearKernels kernels = avx512::MakeTable();
  return kernels;
}

}  // namespace nibble::kernels::cpu
