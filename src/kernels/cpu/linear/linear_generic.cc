// Linear in plain C++, for processors without an instruction set of ours; also the readable form of
// what the others do.
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace generic {
namespace {

struct Row {
  float v[kPanelRows];
};

inline Row ZeroRow() { return {}; }
inline Row LoadRow(const float* p) {
  Row row;
  __builtin_memcpy(row.v, p, sizeof(row.v));
  return row;
}
inline void StoreRow(const Row& row, float* p) { __builtin_memcpy(p, row.v, sizeof(row.v)); }
inline Row AddRows(const Row& a, const Row& b) {
  Row sum;
  for (int i = 0; i < kPanelRows; ++i) sum.v[i] = a.v[i] + b.v[i];
  return sum;
}
inline Row MulRows(const Row& a, const Row& b) {
  Row product;
  for (int i = 0; i < kPanelRows; ++i) product.v[i] = a.v[i] * b.v[i];
  return product;
}
inline Row FmaRows(const Row& a, const Row& b, const Row& c) {
  Row sum;
  for (int i = 0; i < kPanelRows; ++i) sum.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return sum;
}
inline Row FmaSplat(const Row& a, float b, const Row& c) {
  Row sum;
  for (int i = 0; i < kPanelRows; ++i) sum.v[i] = __builtin_fmaf(a.v[i], b, c.v[i]);
  return sum;
}

inline float FloatOfBits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline float WidenHalf(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1Fu;
  const uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 0x1F) return FloatOfBits(sign | 0x7F800000u | (mantissa << 13));
  return FloatOfBits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

// 2 * E2M1 by code.
constexpr int8_t kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Code of row `row` and k of the 32 k at `codes`.
inline uint8_t CodeAt(const std::byte* codes, int k, int row) {
  const auto byte = static_cast<uint8_t>(codes[k / 8 * 64 + row * 4 + k % 4]);
  return k % 8 < 4 ? byte & 0xFu : byte >> 4;
}

struct Codes {
  int8_t w[kBlockK][kPanelRows];
};
inline Codes DecodeCodes(const std::byte* p) {
  Codes codes;
  for (int k = 0; k < kBlockK; ++k) {
    for (int row = 0; row < kPanelRows; ++row) codes.w[k][row] = kDoubled[CodeAt(p, k, row)];
  }
  return codes;
}

struct Pairs {
  Row low;
  Row high;
};

using PairBlock = F32Block;

inline Row PairDot(const Pairs& w, const float* x, const Row& c) {
  return FmaSplat(w.low, x[0], FmaSplat(w.high, x[1], c));
}

template <int P>
Pairs Bf16Pair(const std::byte* p) {
  Pairs pairs;
  for (int row = 0; row < kPanelRows; ++row) {
    uint32_t both;
    __builtin_memcpy(&both, p + P * 64 + row * 4, 4);
    pairs.low.v[row] = FloatOfBits(both << 16);
    pairs.high.v[row] = FloatOfBits(both & 0xFFFF0000u);
  }
  return pairs;
}

inline float WidenFp8(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7Fu;
  if (magnitude == 0x7F) return FloatOfBits(sign | 0x7FC00000u);
  if (magnitude < 8) {
    const float value = static_cast<float>(magnitude) * 0x1p-9f;
    return sign != 0 ? -value : value;
  }
  return FloatOfBits(sign | ((magnitude << 20) + (120u << 23)));
}

template <int P>
Pairs Fp8Pair(const std::byte* p) {
  Pairs pairs;
  const std::byte* vector = p + P / 2 * 64 + P % 2 * 8;
  for (int row = 0; row < kPanelRows; ++row) {
    const std::byte* both = vector + row / 4 * 16 + row % 4 * 2;
    pairs.low.v[row] = WidenFp8(static_cast<uint8_t>(both[0]));
    pairs.high.v[row] = WidenFp8(static_cast<uint8_t>(both[1]));
  }
  return pairs;
}

inline Row WidenHalfs(const std::byte* p) {
  Row row;
  for (int i = 0; i < kPanelRows; ++i) {
    uint16_t bits;
    __builtin_memcpy(&bits, p + 2 * i, 2);
    row.v[i] = WidenHalf(bits);
  }
  return row;
}

struct ScaleBytes {
  const std::byte* first;  // of row 0; other rows every 4 bytes
};
inline ScaleBytes LoadScaleBytes(const std::byte* group) { return {group}; }
template <CodeFormat F>
ScaleBytes NextScales(ScaleBytes bytes) {
  return {bytes.first + CodeLayout<F>::kScalesPerBlock};
}

template <CodeFormat F, int I>
Row ScaleRow(ScaleBytes bytes) {
  Row scales;
  for (int row = 0; row < kPanelRows; ++row) {
    const auto byte = static_cast<uint8_t>(bytes.first[row * 4 + I]);
    scales.v[row] = FloatOfBits(static_cast<uint32_t>(byte) << (F == CodeFormat::kNvfp4 ? 20 : 23));
  }
  return scales;
}

struct Scales {
  Row first;
  Row second;  // NVFP4 only
};
template <CodeFormat F>
Scales LoadScales(ScaleBytes bytes) {
  if constexpr (F == CodeFormat::kNvfp4) {
    return {ScaleRow<F, 0>(bytes), ScaleRow<F, 1>(bytes)};
  } else {
    return {ScaleRow<F, 0>(bytes), ZeroRow()};
  }
}

// Integer dot of k [begin, end) as floats: below 2^24, so the conversion is exact.
inline Row Dot(const Codes& codes, const Int8Block& x, int begin, int end) {
  int32_t sums[kPanelRows] = {};
  for (int k = begin; k < end; ++k) {
    for (int row = 0; row < kPanelRows; ++row) {
      sums[row] += static_cast<int16_t>(codes.w[k][row]) * static_cast<int16_t>(x.q[k]);
    }
  }
  Row dot;
  for (int row = 0; row < kPanelRows; ++row) dot.v[row] = static_cast<float>(sums[row]);
  return dot;
}

template <CodeFormat F, int I>
Row Dot8(const Codes& codes, const Int8Block& x) {
  constexpr int kLength = kBlockK / CodeLayout<F>::kScalesPerBlock;
  return Dot(codes, x, I * kLength, (I + 1) * kLength);
}

// What the digits stand for. Block: Int24Block or Int24SumBlock.
template <typename Block>
int32_t ValueAt(const Block& x, int k) {
  return x.digits[0][k] * 65536 + x.digits[1][k] * 256 + x.digits[2][k];
}

template <CodeFormat F, int I>
Row Dot24(const Codes& codes, const Int24Block& x) {
  constexpr int kLength = kBlockK / CodeLayout<F>::kScalesPerBlock;
  Row dot;
  for (int row = 0; row < kPanelRows; ++row) {
    int32_t sum = 0;
    for (int k = I * kLength; k < (I + 1) * kLength; ++k) sum += codes.w[k][row] * ValueAt(x, k);
    dot.v[row] = static_cast<float>(sum);
  }
  return dot;
}

struct Words {
  int16_t low[kPanelRows];
  int16_t high[kPanelRows];
};
template <int P>
Words CodeWords(const std::byte* p) {
  constexpr int kLow = P / 4 * 8 + kPairLow[P % 4];
  Words words;
  for (int row = 0; row < kPanelRows; ++row) {
    words.low[row] = kDoubled[CodeAt(p, kLow, row)];
    words.high[row] = kDoubled[CodeAt(p, kLow + 2, row)];
  }
  return words;
}

struct WordSum {
  int32_t v[kPanelRows];
};
inline WordSum StartWords() { return {}; }
inline WordSum WordDot(const Words& w, const int16_t* x, const WordSum& c) {
  WordSum sum;
  for (int row = 0; row < kPanelRows; ++row) {
    sum.v[row] = c.v[row] + w.low[row] * x[0] + w.high[row] * x[1];
  }
  return sum;
}
inline Row FloatWords(const WordSum& sum) {
  Row floats;
  for (int row = 0; row < kPanelRows; ++row) floats.v[row] = static_cast<float>(sum.v[row]);
  return floats;
}

// ---- Integer weights

inline uint32_t DwordAt(const std::byte* p, int row) {
  uint32_t dword;
  __builtin_memcpy(&dword, p + row * 4, 4);
  return dword;
}

inline Row LoadMaskedRow(const std::byte* p, uint32_t mask) {
  Row masked;
  for (int row = 0; row < kPanelRows; ++row) masked.v[row] = FloatOfBits(DwordAt(p, row) & mask);
  return masked;
}

struct Zeros {
  uint8_t v[kPanelRows];
};
inline Zeros LoadZeros(const std::byte* p) {
  Zeros zeros;
  for (int row = 0; row < kPanelRows; ++row) {
    zeros.v[row] = static_cast<uint8_t>(DwordAt(p, row));
  }
  return zeros;
}

// Code of row `row` and k of the 32 k at `codes`.
template <int kBits>
uint8_t IntCodeAt(const std::byte* codes, int k, int row) {
  if constexpr (kBits == 4) return CodeAt(codes, k, row);
  return static_cast<uint8_t>(codes[k / 4 * 64 + row * 4 + k % 4]);
}

struct IntCodes {
  uint8_t w[kBlockK][kPanelRows];
};
template <int kBits>
IntCodes DecodeInts(const std::byte* p) {
  IntCodes codes;
  for (int k = 0; k < kBlockK; ++k) {
    for (int row = 0; row < kPanelRows; ++row) codes.w[k][row] = IntCodeAt<kBits>(p, k, row);
  }
  return codes;
}

template <int kBits>
Row IntSum(const IntCodes& codes, const Zeros& zeros, const Int8SumBlock& x) {
  int32_t sums[kPanelRows];
  for (int row = 0; row < kPanelRows; ++row) sums[row] = zeros.v[row] * x.minus_sum;
  for (int k = 0; k < kBlockK; ++k) {
    for (int row = 0; row < kPanelRows; ++row) sums[row] += codes.w[k][row] * x.q[k];
  }
  Row sum;
  for (int row = 0; row < kPanelRows; ++row) sum.v[row] = static_cast<float>(sums[row]);
  return sum;
}

template <int kBits>
Row IntSum(const IntCodes& codes, const Zeros& zeros, const Int24SumBlock& x) {
  int32_t sums[kPanelRows] = {};
  for (int k = 0; k < kBlockK; ++k) {
    const int32_t value = ValueAt(x, k);
    for (int row = 0; row < kPanelRows; ++row) {
      sums[row] += (codes.w[k][row] - zeros.v[row]) * value;
    }
  }
  Row sum;
  for (int row = 0; row < kPanelRows; ++row) sum.v[row] = static_cast<float>(sums[row]);
  return sum;
}

template <int kBits>
using PairZeros = Zeros;
template <int kBits>
Zeros MakePairZeros(const Zeros& zeros) {
  return zeros;
}

template <int kBits, int P>
Pairs IntPair(const std::byte* p, const Zeros& zeros) {
  constexpr int kLow = P / 4 * 8 + kPairLow[P % 4];
  Pairs pairs;
  for (int row = 0; row < kPanelRows; ++row) {
    const int zero = zeros.v[row];
    pairs.low.v[row] = static_cast<float>(IntCodeAt<kBits>(p, kLow, row) - zero);
    pairs.high.v[row] = static_cast<float>(IntCodeAt<kBits>(p, kLow + 2, row) - zero);
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

// int16: the order of code_loops.inc.
template <CodeFormat F>
struct CodesInt16 {
  // Adds the products of pairs [Begin, End) of the 32 k at codes.
  template <int Begin, int End, int T>
  static inline __attribute__((always_inline)) void AddWords(const std::byte* codes,
                                                             const Int16Block* x,
                                                             WordSum (&sum)[T]) {
    if constexpr (Begin < End) {
      const Words words = CodeWords<Begin>(codes);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) sum[t] = WordDot(words, &x[t].q[2 * Begin], sum[t]);
      AddWords<Begin + 1, End>(codes, x, sum);
    }
  }

  // dots over the half of the 32 k that starts at pair Begin.
  template <int Begin, int T>
  static inline __attribute__((always_inline)) void DotHalf(const std::byte* codes,
                                                            const Int16Block* x, Row (&dot)[T]) {
    WordSum sum[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sum[t] = StartWords();
    AddWords<Begin, Begin + kPairsPerBlock / 2>(codes, x, sum);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) dot[t] = FloatWords(sum[t]);
  }

  template <int T>
  static void Run(const PanelJob& job, const Tile& tile) {
    using Layout = CodeLayout<F>;
    constexpr int64_t kGroupBytes = kScaleBytes + Layout::kBlocks * kCodeBytes;
    const auto* x = reinterpret_cast<const Int16Block*>(tile.activations);
    const std::byte* w = tile.weights;
    Row acc[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t] = ZeroRow();
    for (int64_t group = 0; group < job.groups; ++group, w += kGroupBytes) {
      if (tile.prefetch) Prefetch<kGroupBytes>(w);
      ScaleBytes scale_bytes = LoadScaleBytes(w);
      for (int block = 0; block < Layout::kBlocks; ++block, x += T) {
        const std::byte* codes = w + kScaleBytes + block * kCodeBytes;
        const Row first = ScaleRow<F, 0>(scale_bytes);
        const Row second = ScaleRow<F, Layout::kScalesPerBlock - 1>(scale_bytes);
        scale_bytes = NextScales<F>(scale_bytes);
        Row dots[2][T];
        DotHalf<0>(codes, x, dots[0]);
        DotHalf<kPairsPerBlock / 2>(codes, x, dots[1]);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
          const Row product = FmaRows(dots[1][t], second, MulRows(dots[0][t], first));
          acc[t] = FmaSplat(product, x[t].scale, acc[t]);
        }
      }
    }
    StoreTile<T>(job, tile, acc);
  }
};

constexpr LinearKernels kKernels = {
    .name = "generic",
    .prepare_int8 = PrepareInt8<Int8Block>,
    .prepare_int8_sum = PrepareInt8<Int8SumBlock>,
    .prepare_int16 = PrepareInt16<Int16Block>,
    .prepare_int24 = PrepareInt24,
    .prepare_int24_sum = PrepareInt24Sum,
    .prepare_bf16 = PrepareBf16,
    .bf16_block_bytes = sizeof(PairBlock),
    .prepare_f32 = PrepareF32,
    .nvfp4_int8 = MakeKernel<CodesInt8<CodeFormat::kNvfp4>, 1>(),
    .nvfp4_int16 = MakeKernel<CodesInt16<CodeFormat::kNvfp4>, 1>(),
    .nvfp4_int24 = MakeKernel<CodesInt24<CodeFormat::kNvfp4>, 1>(),
    .mxfp4_int8 = MakeKernel<CodesInt8<CodeFormat::kMxfp4>, 1>(),
    .mxfp4_int16 = MakeKernel<CodesInt16<CodeFormat::kMxfp4>, 1>(),
    .mxfp4_int24 = MakeKernel<CodesInt24<CodeFormat::kMxfp4>, 1>(),
    .bf16 = MakeKernel<DenseBf16, 1>(),
    .fp8 = MakeKernel<DenseFp8, 1>(),
    .f16 = MakeKernel<DenseFloat<WidenF16>, 1>(),
    .f32 = MakeKernel<DenseFloat<WidenF32>, 1>(),
    .int4_int8 = MakeKernel<IntSums<4, Int8SumBlock>, 1>(),
    .int4_int24 = MakeKernel<IntSums<4, Int24SumBlock>, 1>(),
    .int8_int8 = MakeKernel<IntSums<8, Int8SumBlock>, 1>(),
    .int8_bf16 = MakeKernel<IntsBf16<8>, 1>(),
};

}  // namespace
}  // namespace generic

const LinearKernels& GenericLinear() { return generic::kKernels; }

}  // namespace nibble::kernels::cpu
