// Linear on AVX-512 with VNNI and VBMI, BF16 pairs multiplied by vdpbf16ps: for AMD's processors,
// where it is twice as fast as FP32 multiply-adds, and as fast as 4-bit codes times fixed point:
// there the sums of such weights are in another order than elsewhere. Everything else is
// linear_avx512.cc's.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512_bf16 {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"

using Pairs = __m512i;
using PairBlock = Bf16Block;

NIBBLE_INLINE Row PairDot(Pairs w, const uint16_t* x, Row c) {
  return _mm512_dpbf16_ps(c, (__m512bh)w, (__m512bh)SplatDword(x));
}
template <int P>
NIBBLE_INLINE Pairs CodePair(const std::byte* p) {
  return CodeBf16s<P>(p);
}
template <int P>
NIBBLE_INLINE Pairs Bf16Pair(const std::byte* p) {
  return Bf16Words<P>(p);
}
template <int P>
NIBBLE_INLINE Pairs Fp8Pair(const std::byte* p) {
  return Fp8Words<P>(p);
}
// -16..15 by its five low bits: INT4 codes less their zero points.
constexpr WordTable MakeBf16Differences() {
  WordTable table = {};
  for (int i = 0; i < 32; ++i) table.v[i] = Bf16OfSmallInteger(i < 16 ? i : i - 32);
  return table;
}

constexpr WordTable kBf16Differences = MakeBf16Differences();

template <>
struct PairZeros<4> {
  __m512i v;  // four equal bytes per row
};

template <int kBits>
NIBBLE_INLINE PairZeros<kBits> MakePairZeros(Zeros zeros) {
  if constexpr (kBits == 8)
    return MakeInt8Zeros(zeros);
  else
    return {_mm512_mullo_epi32(zeros, _mm512_set1_epi32(0x01010101))};
}

// Pair P of 8 k of INT4: its members are byte P % 4 / 2 of the low or high nibbles' words.
template <int P>
NIBBLE_INLINE __m512i Int4Words(const std::byte* p, const PairZeros<4>& zeros) {
  const __m512i nibbles = Nibbles < P % 2 == 1 > (_mm512_load_si512(p + P / 4 * 64));
  const __m512i differences = _mm512_sub_epi8(nibbles, zeros.v);
  return _mm512_permutexvar_epi16(_mm512_srli_epi16(differences, P % 4 / 2 * 8),
                                  LoadTable(&kBf16Differences));
}

template <int kBits, int P>
NIBBLE_INLINE Pairs IntPair(const std::byte* p, const PairZeros<kBits>& zeros) {
  if constexpr (kBits == 4)
    return Int4Words<P>(p, zeros);
  else
    return Int8Words<P>(p, zeros);
}

#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/panel_loops.inc"
//
#include "kernels/cpu/linear/prepare_loops.inc"
//
#include "kernels/cpu/linear/int_loops.inc"

// ---- 4-bit codes: dot over a scale block's k (at most 32) in pair order, from 0;
// acc = fma(dot, scale, acc)

template <int P>
struct CodePairAt {
  static inline __attribute__((always_inline)) Pairs Load(const std::byte* w) {
    return CodePair<P>(w);
  }
};
template <CodeFormat F>
struct CodesBf16 {
  template <int T>
  static void Run(const PanelJob& job, const Tile& tile) {
    using Layout = CodeLayout<F>;
    constexpr int64_t kGroupBytes = kScaleBytes + Layout::kBlocks * kCodeBytes;
    constexpr int kHalf = kPairsPerBlock / 2;
    const auto* x = reinterpret_cast<const PairBlock*>(tile.activations);
    const std::byte* w = tile.weights;
    Row acc[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t] = ZeroRow();
    for (int64_t group = 0; group < job.groups; ++group, w += kGroupBytes) {
      if (tile.prefetch) Prefetch<kScaleBytes>(w);
      ScaleBytes scale_bytes = LoadScaleBytes(w);
      for (int block = 0; block < Layout::kBlocks; ++block, x += T) {
        const std::byte* codes = w + kScaleBytes + block * kCodeBytes;
        // Block by block: requests for a whole group at once would queue up.
        if (tile.prefetch) Prefetch<kCodeBytes>(codes);
        Row dot[T];
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) dot[t] = ZeroRow();
        if constexpr (Layout::kScalesPerBlock == 2) {
          PairDots<CodePairAt, T, 0, kHalf>(codes, x, dot);
          const Row first = ScaleRow<F, 0>(scale_bytes);
#pragma GCC unroll 16
          for (int t = 0; t < T; ++t) {
            acc[t] = FmaRows(dot[t], first, acc[t]);
            dot[t] = ZeroRow();
          }
          PairDots<CodePairAt, T, kHalf, kPairsPerBlock>(codes, x, dot);
        } else {
          PairDots<CodePairAt, T, 0, kPairsPerBlock>(codes, x, dot);
        }
        const Row last = ScaleRow<F, Layout::kScalesPerBlock - 1>(scale_bytes);
        scale_bytes = NextScales<F>(scale_bytes);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) acc[t] = FmaRows(dot[t], last, acc[t]);
      }
    }
    StoreTile<T>(job, tile, acc);
  }
};

int64_t ProbeBf16(int64_t iterations) {
  __m512 sums[kProbeSums] = {};
  // Each sum starts as a secret, or the compiler would compute one for all.
  for (__m512& sum : sums) asm volatile("" : "+v"(sum));
  __m512i a = _mm512_set1_epi16(0x3F80);
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile("" : "+v"(a));
#pragma GCC unroll 12
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)a);
  }
  for (__m512& sum : sums) asm volatile("" ::"v"(sum));
  return iterations * kProbeSums * 32 * 2;
}

// A single tile keeps to the loops of this file.
template <typename Kernel>
PanelKernel BatchKernel(PanelRun batch) {
  return {.run = batch,
          .sizes = {1, 2, 3, 4, 5, 6, 7},
          .run_one_tile = RunPanels<Kernel, 1, 2, 3, 4, 5, 6, 7, 8>,
          .one_tile = 8};
}

// The rest of the table comes from Avx512Linear.
LinearKernels MakeTable() {
  LinearKernels kernels = Avx512Linear();
  kernels.name = "avx512-bf16";
  kernels.bf16_probe = ProbeBf16;
  kernels.prepare_bf16 = PrepareBf16;
  kernels.bf16_block_bytes = sizeof(PairBlock);
  kernels.nvfp4_bf16 = MakeKernel<CodesBf16<CodeFormat::kNvfp4>, 1, 2, 4, 8, 12>();
  kernels.mxfp4_bf16 = MakeKernel<CodesBf16<CodeFormat::kMxfp4>, 1, 2, 4, 8, 12>();
  kernels.fp8 = MakeKernel<DenseFp8, 1, 2, 4, 8, 12>();
  kernels.int4_bf16 = MakeKernel<IntsBf16<4>, 1, 2, 4, 8, 12>();
  const FloatRuns batch = Avx512Bf16BatchRuns();
  kernels.bf16 = BatchKernel<DenseBf16>(batch.bf16);
  kernels.int8_bf16 = BatchKernel<IntsBf16<8>>(batch.int8_bf16);
  kernels.mxfp4_bf16_many = {.run = batch.mxfp4, .sizes = {1, 2, 3, 4, 5, 6, 7}};
  return kernels;
}

}  // namespace
}  // namespace avx512_bf16

const LinearKernels& Avx512Bf16Linear() {
  static const LinearKernels kernels = avx512_bf16::MakeTable();
  return kernels;
}

}  // namespace nibble::kernels::cpu
