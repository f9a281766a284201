// Linear on Arm NEON with the dot product extension: four registers hold the 16 rows of a panel.
//
// sdot multiplies signed bytes, so codes are looked up as they are and the offsets of Int8Block
// stay unused. BF16 products are FP32 FMAs: bfdot rounds in another way.
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

#define NIBBLE_INLINE inline __attribute__((always_inline))

namespace nibble::kernels::cpu {
namespace neon {
namespace {

constexpr int kQuads = 4;  // registers of four rows

struct Row {
  float32x4_t v[kQuads];
};

NIBBLE_INLINE Row ZeroRow() {
  const float32x4_t zero = vdupq_n_f32(0.0f);
  return {{zero, zero, zero, zero}};
}
NIBBLE_INLINE Row LoadRow(const float* p) {
  return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
NIBBLE_INLINE void StoreRow(const Row& row, float* p) {
  for (int i = 0; i < kQuads; ++i) vst1q_f32(p + 4 * i, row.v[i]);
}
NIBBLE_INLINE Row AddRows(const Row& a, const Row& b) {
  Row sum;
  for (int i = 0; i < kQuads; ++i) sum.v[i] = vaddq_f32(a.v[i], b.v[i]);
  return sum;
}
NIBBLE_INLINE Row MulRows(const Row& a, const Row& b) {
  Row product;
  for (int i = 0; i < kQuads; ++i) product.v[i] = vmulq_f32(a.v[i], b.v[i]);
  return product;
}
NIBBLE_INLINE Row FmaRows(const Row& a, const Row& b, const Row& c) {
  Row sum;
  for (int i = 0; i < kQuads; ++i) sum.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return sum;
}
NIBBLE_INLINE Row FmaSplat(const Row& a, float b, const Row& c) {
  Row sum;
  for (int i = 0; i < kQuads; ++i) sum.v[i] = vfmaq_n_f32(c.v[i], a.v[i], b);
  return sum;
}

NIBBLE_INLINE uint8x16_t Load128(const std::byte* p) {
  return vld1q_u8(reinterpret_cast<const uint8_t*>(p));
}

// 2 * E2M1 by code.
NIBBLE_INLINE int8x16_t DoubledTable() {
  return int8x16_t{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
}
NIBBLE_INLINE int8x16_t LookUpLow(uint8x16_t bytes) {
  return vqtbl1q_s8(DoubledTable(), vandq_u8(bytes, vdupq_n_u8(0x0F)));
}
NIBBLE_INLINE int8x16_t LookUpHigh(uint8x16_t bytes) {
  return vqtbl1q_s8(DoubledTable(), vshrq_n_u8(bytes, 4));
}

// ---- Scales

struct ScaleBytes {
  uint32x4_t v[kQuads];
};

NIBBLE_INLINE ScaleBytes LoadScaleBytes(const std::byte* group) {
  ScaleBytes bytes;
  for (int i = 0; i < kQuads; ++i) bytes.v[i] = vreinterpretq_u32_u8(Load128(group + 16 * i));
  return bytes;
}

template <CodeFormat F>
NIBBLE_INLINE ScaleBytes NextScales(const ScaleBytes& bytes) {
  ScaleBytes next;
  for (int i = 0; i < kQuads; ++i) {
    next.v[i] = vshrq_n_u32(bytes.v[i], 8 * CodeLayout<F>::kScalesPerBlock);
  }
  return next;
}

template <CodeFormat F, int I>
NIBBLE_INLINE Row ScaleRow(const ScaleBytes& bytes) {
  constexpr int kShift = F == CodeFormat::kNvfp4 ? 20 : 23;
  const uint32x4_t mask = vdupq_n_u32(0xFFu << kShift);
  Row row;
  for (int i = 0; i < kQuads; ++i) {
    row.v[i] = vreinterpretq_f32_u32(vandq_u32(vshlq_n_u32(bytes.v[i], kShift - 8 * I), mask));
  }
  return row;
}

struct Scales {
  Row first;
  Row second;  // NVFP4 only
};

template <CodeFormat F>
NIBBLE_INLINE Scales LoadScales(const ScaleBytes& bytes) {
  if constexpr (F == CodeFormat::kNvfp4) {
    return {ScaleRow<F, 0>(bytes), ScaleRow<F, 1>(bytes)};
  } else {
    return {ScaleRow<F, 0>(bytes), ZeroRow()};
  }
}

// ---- Integer products

struct Codes {
  int8x16_t w[8][kQuads];  // [dword of the activations][four rows]
};

NIBBLE_INLINE Codes DecodeCodes(const std::byte* p) {
  Codes codes;
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
#pragma GCC unroll 4
    for (int quad = 0; quad < kQuads; ++quad) {
      const uint8x16_t bytes = Load128(p + 64 * v + 16 * quad);
      codes.w[2 * v][quad] = LookUpLow(bytes);
      codes.w[2 * v + 1][quad] = LookUpHigh(bytes);
    }
  }
  return codes;
}

struct IntRow {
  int32x4_t v[kQuads];
};

// Adds the dot over 16 k: dword d of the activations, one of `x`'s lanes, meets w[d].
template <int Begin>
NIBBLE_INLINE IntRow Dot16(const Codes& codes, int8x16_t x, IntRow sum) {
#pragma GCC unroll 4
  for (int quad = 0; quad < kQuads; ++quad) {
    sum.v[quad] = vdotq_laneq_s32(sum.v[quad], codes.w[Begin][quad], x, 0);
    sum.v[quad] = vdotq_laneq_s32(sum.v[quad], codes.w[Begin + 1][quad], x, 1);
    sum.v[quad] = vdotq_laneq_s32(sum.v[quad], codes.w[Begin + 2][quad], x, 2);
    sum.v[quad] = vdotq_laneq_s32(sum.v[quad], codes.w[Begin + 3][quad], x, 3);
  }
  return sum;
}

NIBBLE_INLINE Row FloatDot(const IntRow& sum) {
  Row row;
  for (int i = 0; i < kQuads; ++i) row.v[i] = vcvtq_f32_s32(sum.v[i]);
  return row;
}

NIBBLE_INLINE IntRow ZeroInts() {
  const int32x4_t zero = vdupq_n_s32(0);
  return {{zero, zero, zero, zero}};
}

template <CodeFormat F, int I>
NIBBLE_INLINE Row Dot8(const Codes& codes, const Int8Block& x) {
  const IntRow dot = Dot16<4 * I>(codes, vld1q_s8(x.q + 16 * I), ZeroInts());
  if constexpr (F == CodeFormat::kNvfp4) {
    return FloatDot(dot);
  } else {
    return FloatDot(Dot16<4>(codes, vld1q_s8(x.q + 16), dot));
  }
}

// Digit by digit from the highest: what is there counts 256 times as much as the next.
template <CodeFormat F, int I>
NIBBLE_INLINE Row Dot24(const Codes& codes, const Int24Block& x) {
  IntRow sum = ZeroInts();
#pragma GCC unroll 3
  for (int digit = 0; digit < 3; ++digit) {
    if (digit > 0) {
      for (int quad = 0; quad < kQuads; ++quad) sum.v[quad] = vshlq_n_s32(sum.v[quad], 8);
    }
    sum = Dot16<4 * I>(codes, vld1q_s8(x.digits[digit] + 16 * I), sum);
    if constexpr (F == CodeFormat::kMxfp4) {
      sum = Dot16<4>(codes, vld1q_s8(x.digits[digit] + 16), sum);
    }
  }
  return FloatDot(sum);
}

// 16 k of int16 activations by their two digits.
template <int I>
NIBBLE_INLINE Row Dot16Digits(const Codes& codes, const DigitBlock& x) {
  IntRow sum = Dot16<4 * I>(codes, vld1q_s8(x.high + 16 * I), ZeroInts());
  for (int quad = 0; quad < kQuads; ++quad) sum.v[quad] = vshlq_n_s32(sum.v[quad], 8);
  return FloatDot(Dot16<4 * I>(codes, vld1q_s8(x.low + 16 * I), sum));
}

// ---- BF16 products

struct Pairs {
  Row low;
  Row high;
};
using PairBlock = F32Block;

NIBBLE_INLINE Row PairDot(const Pairs& w, const float* x, const Row& c) {
  return FmaSplat(w.low, x[0], FmaSplat(w.high, x[1], c));
}

template <int P>
NIBBLE_INLINE Pairs Bf16Pair(const std::byte* p) {
  Pairs pairs;
  for (int quad = 0; quad < kQuads; ++quad) {
    const uint32x4_t words = vreinterpretq_u32_u8(Load128(p + P * 64 + 16 * quad));
    pairs.low.v[quad] = vreinterpretq_f32_u32(vshlq_n_u32(words, 16));
    pairs.high.v[quad] = vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xFFFF0000u)));
  }
  return pairs;
}

// E4M3 codes in 4 words -> FP32: as F16 of 2^-8 the value, subnormals included; the NaN code is
// made an F16 NaN.
NIBBLE_INLINE float32x4_t FloatOfFp8(uint16x4_t codes) {
  const uint16x4_t magnitude = vand_u16(codes, vdup_n_u16(0x7F));
  const uint16x4_t sign = vshl_n_u16(vand_u16(codes, vdup_n_u16(0x80)), 8);
  const uint16x4_t nan = vshr_n_u16(vceq_u16(magnitude, vdup_n_u16(0x7F)), 1);
  const uint16x4_t half = vorr_u16(vorr_u16(vshl_n_u16(magnitude, 7), sign), nan);
  return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 256.0f);
}

template <int P>
NIBBLE_INLINE Pairs Fp8Pair(const std::byte* p) {
  Pairs pairs;
  for (int quad = 0; quad < kQuads; ++quad) {
    const std::byte* words = p + P / 2 * 64 + 16 * quad + P % 2 * 8;
    const uint16x4_t both = vld1_u16(reinterpret_cast<const uint16_t*>(words));
    pairs.low.v[quad] = FloatOfFp8(both);
    pairs.high.v[quad] = FloatOfFp8(vshr_n_u16(both, 8));
  }
  return pairs;
}

NIBBLE_INLINE Row WidenHalfs(const std::byte* p) {
  Row row;
  for (int quad = 0; quad < kQuads; ++quad) {
    const uint16x4_t bits = vld1_u16(reinterpret_cast<const uint16_t*>(p) + 4 * quad);
    row.v[quad] = vcvt_f32_f16(vreinterpret_f16_u16(bits));
  }
  return row;
}
// ---- Integer weights

NIBBLE_INLINE Row LoadMaskedRow(const std::byte* p, uint32_t mask) {
  Row row;
  for (int quad = 0; quad < kQuads; ++quad) {
    const uint32x4_t dwords = vreinterpretq_u32_u8(Load128(p + 16 * quad));
    row.v[quad] = vreinterpretq_f32_u32(vandq_u32(dwords, vdupq_n_u32(mask)));
  }
  return row;
}

using Zeros = IntRow;
NIBBLE_INLINE Zeros LoadZeros(const std::byte* p) {
  Zeros zeros;
  for (int quad = 0; quad < kQuads; ++quad) {
    const uint32x4_t dwords = vreinterpretq_u32_u8(Load128(p + 16 * quad));
    zeros.v[quad] = vreinterpretq_s32_u32(vandq_u32(dwords, vdupq_n_u32(0xFF)));
  }
  return zeros;
}

template <bool kHigh>
NIBBLE_INLINE uint8x16_t Nibbles(uint8x16_t bytes) {
  return kHigh ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(0x0F));
}

using IntCodes = Codes;

// sdot wants signed bytes: 8-bit codes lose 128, their zero points, too (IntSum).
constexpr int kSignedOffset = 128;

template <int kBits>
NIBBLE_INLINE IntCodes DecodeInts(const std::byte* p) {
  IntCodes codes;
#pragma GCC unroll 8
  for (int d = 0; d < 8; ++d) {
#pragma GCC unroll 4
    for (int quad = 0; quad < kQuads; ++quad) {
      if constexpr (kBits == 4) {
        const uint8x16_t bytes = Load128(p + d / 2 * 64 + 16 * quad);
        codes.w[d][quad] =
            vreinterpretq_s8_u8(d % 2 == 0 ? Nibbles<false>(bytes) : Nibbles<true>(bytes));
      } else {
        const uint8x16_t bytes = Load128(p + d * 64 + 16 * quad);
        codes.w[d][quad] = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(kSignedOffset)));
      }
    }
  }
  return codes;
}

template <int kBits>
NIBBLE_INLINE Row IntSum(const IntCodes& codes, const Zeros& zeros, const Int8SumBlock& x) {
  constexpr int kOffset = kBits == 8 ? kSignedOffset : 0;
  IntRow sum;
  for (int quad = 0; quad < kQuads; ++quad) {
    sum.v[quad] = vmulq_n_s32(vsubq_s32(zeros.v[quad], vdupq_n_s32(kOffset)), x.minus_sum);
  }
  sum = Dot16<0>(codes, vld1q_s8(x.q), sum);
  return FloatDot(Dot16<4>(codes, vld1q_s8(x.q + 16), sum));
}

template <int kBits>
NIBBLE_INLINE Row IntSum(const IntCodes& codes, const Zeros& zeros, const Int24SumBlock& x) {
  static_assert(kBits == 4);
  IntRow sum = ZeroInts();
#pragma GCC unroll 3
  for (int digit = 0; digit < 3; ++digit) {
    for (int quad = 0; quad < kQuads; ++quad) {
      sum.v[quad] = digit < 2
                        ? vshlq_n_s32(sum.v[quad], 8)
                        : vmlaq_n_s32(vshlq_n_s32(sum.v[quad], 8), zeros.v[quad], x.minus_sum);
    }
    sum = Dot16<0>(codes, vld1q_s8(x.digits[digit]), sum);
    sum = Dot16<4>(codes, vld1q_s8(x.digits[digit] + 16), sum);
  }
  return FloatDot(sum);
}

template <int kBits>
struct PairZeros {
  int32x4_t v[kQuads];
};

template <int kBits>
NIBBLE_INLINE PairZeros<kBits> MakePairZeros(const Zeros& zeros) {
  PairZeros<kBits> pair_zeros;
  for (int quad = 0; quad < kQuads; ++quad) {
    pair_zeros.v[quad] = zeros.v[quad];
  }
  return pair_zeros;
}

// Byte `kByte` of every dword less the zero point, as a float.
template <int kByte>
NIBBLE_INLINE float32x4_t FloatOfInt8(uint8x16_t bytes, int32x4_t zeros) {
  uint32x4_t dwords = vreinterpretq_u32_u8(bytes);
  if constexpr (kByte > 0) dwords = vshrq_n_u32(dwords, 8 * kByte);
  const uint32x4_t code = vandq_u32(dwords, vdupq_n_u32(0xFF));
  return vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(code), zeros));
}

template <int kBits, int P>
NIBBLE_INLINE Pairs IntPair(const std::byte* p, const PairZeros<kBits>& zeros) {
  static_assert(kBits == 8);
  constexpr int kByte = P % 4 / 2;
  Pairs pairs;
#pragma GCC unroll 4
  for (int quad = 0; quad < kQuads; ++quad) {
    const uint8x16_t bytes = Load128(p + (P / 4 * 2 + P % 2) * 64 + 16 * quad);
    pairs.low.v[quad] = FloatOfInt8<kByte>(bytes, zeros.v[quad]);
    pairs.high.v[quad] = FloatOfInt8<kByte + 2>(bytes, zeros.v[quad]);
  }
  return pairs;
}

#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/panel_loops.inc"
//
#include "kernels/cpu/linear/code_loops.inc"
//
#include "kernels/cpu/linear/prepare_loops.inc"
//
#include "kernels/cpu/linear/int_loops.inc"
//
#include "kernels/cpu/linear/int_sum_loops.inc"

// int16 as digits: what CodesInt16 computes by words, with a quarter of its instructions.
template <CodeFormat F>
struct CodesDigits {
  template <int T>
  static void Run(const PanelJob& job, const Tile& tile) {
    using Layout = CodeLayout<F>;
    constexpr int64_t kGroupBytes = kScaleBytes + Layout::kBlocks * kCodeBytes;
    const auto* x = reinterpret_cast<const DigitBlock*>(tile.activations);
    const std::byte* w = tile.weights;
    Row acc[T];
    for (Row& row : acc) row = ZeroRow();
    for (int64_t group = 0; group < job.groups; ++group, w += kGroupBytes) {
      if (tile.prefetch) Prefetch<kGroupBytes>(w);
      ScaleBytes scale_bytes = LoadScaleBytes(w);
      for (int block = 0; block < Layout::kBlocks; ++block, x += T) {
        const Codes codes = DecodeCodes(w + kScaleBytes + block * kCodeBytes);
        const Row first = ScaleRow<F, 0>(scale_bytes);
        const Row second = ScaleRow<F, Layout::kScalesPerBlock - 1>(scale_bytes);
        scale_bytes = NextScales<F>(scale_bytes);
        for (int t = 0; t < T; ++t) {
          const Row product = FmaRows(Dot16Digits<1>(codes, x[t]), second,
                                      MulRows(Dot16Digits<0>(codes, x[t]), first));
          acc[t] = FmaSplat(product, x[t].scale, acc[t]);
        }
      }
    }
    StoreTile<T>(job, tile, acc);
  }
};

// ---- Probes: enough independent sums to hide the latency of a product

constexpr int kProbeSums = 16;

int64_t ProbeInt8(int64_t iterations) {
  int32x4_t sums[kProbeSums] = {};
  // Each sum starts as a secret, or the compiler would compute one for all.
  for (int32x4_t& sum : sums) asm volatile("" : "+w"(sum));
  int8x16_t a = vdupq_n_s8(1);
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile("" : "+w"(a));  // keeps the compiler from seeing through the loop
#pragma GCC unroll 16
    for (int32x4_t& sum : sums) sum = vdotq_s32(sum, a, a);
  }
  for (int32x4_t& sum : sums) asm volatile("" ::"w"(sum));
  return iterations * kProbeSums * 16 * 2;
}

int64_t ProbeBf16(int64_t iterations) {
  float32x4_t sums[kProbeSums] = {};
  for (float32x4_t& sum : sums) asm volatile("" : "+w"(sum));
  float32x4_t a = vdupq_n_f32(1.0f);
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile("" : "+w"(a));
#pragma GCC unroll 16
    for (float32x4_t& sum : sums) sum = vfmaq_f32(sum, a, a);
  }
  for (float32x4_t& sum : sums) asm volatile("" ::"w"(sum));
  return iterations * kProbeSums * 4 * 2;
}

constexpr LinearKernels kKernels = {
    .name = "neon",
    .int8_probe = ProbeInt8,
    .bf16_probe = ProbeBf16,
    .prepare_int8 = PrepareInt8<Int8Block>,
    .prepare_int8_sum = PrepareInt8<Int8SumBlock>,
    .prepare_digits = PrepareInt16<DigitBlock>,
    .prepare_int24 = PrepareInt24,
    .prepare_int24_sum = PrepareInt24Sum,
    .prepare_bf16 = PrepareBf16,
    .bf16_block_bytes = sizeof(PairBlock),
    .prepare_f32 = PrepareF32,
    .nvfp4_int8 = MakeKernel<CodesInt8<CodeFormat::kNvfp4>, 1, 2, 4>(),
    .nvfp4_digits = MakeKernel<CodesDigits<CodeFormat::kNvfp4>, 1, 4>(),
    .nvfp4_int24 = MakeKernel<CodesInt24<CodeFormat::kNvfp4>, 1, 4>(),
    .mxfp4_int8 = MakeKernel<CodesInt8<CodeFormat::kMxfp4>, 1, 4>(),
    .mxfp4_digits = MakeKernel<CodesDigits<CodeFormat::kMxfp4>, 1, 4>(),
    .mxfp4_int24 = MakeKernel<CodesInt24<CodeFormat::kMxfp4>, 1, 4>(),
    .bf16 = MakeKernel<DenseBf16, 1, 4>(),
    .fp8 = MakeKernel<DenseFp8, 1, 4>(),
    .f16 = MakeKernel<DenseFloat<WidenF16>, 1, 4>(),
    .f32 = MakeKernel<DenseFloat<WidenF32>, 1, 4>(),
    .int4_int8 = MakeKernel<IntSums<4, Int8SumBlock>, 1, 4>(),
    .int4_int24 = MakeKernel<IntSums<4, Int24SumBlock>, 1, 4>(),
    .int8_int8 = MakeKernel<IntSums<8, Int8SumBlock>, 1, 4>(),
    .int8_bf16 = MakeKernel<IntsBf16<8>, 1, 4>(),
};

}  // namespace
}  // namespace neon

const LinearKernels& NeonLinear() { return neon::kKernels; }

}  // namespace nibble::kernels::cpu
