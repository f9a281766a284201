// How a linear's weight and activations lie in memory: one layout for every instruction set.
//
// Weights: panels of 16 output rows; a panel is one contiguous stream along K, a thread reads a
// contiguous range of panels. Along K a panel is a row of groups:
//
//   NVFP4  64 k, 576 B   64 B scales, then 2 x 256 B of codes, one per 32 k
//   MXFP4  128 k, 1088 B 64 B scales, then 4 x 256 B of codes
//   BF16   64 k, 2048 B  32 vectors of 64 B: row i's pair of k in dword i
//   FP8    64 k, 1024 B  16 vectors of 64 B: four k of 16 rows
//   F16    64 k, 2048 B  [k][row], k in pair order
//   F32    64 k, 4096 B  [k][row], k in pair order
//
//   INT4   32 k, 256 B   4 vectors of 64 B of codes; before every scale column's first a header
//   INT8   32 k, 512 B   8 vectors of 64 B: byte 4i+j of vector v is row i, k = 4v + j; likewise
//
// Scales: dword i belongs to row i, byte b to the b-th scale block of the group. NVFP4 stores
// UE5M3 (below), MXFP4 its E8M0 byte.
//
// Headers of INT4 and INT8: dword i is row i's FP32 scale. BF16 and F16 ones leave its low 13 bits
// zero, and the zero point takes the lowest 8. Where a scale is stored in FP32, 64 B more follow:
// zero points as dwords.
//
// Codes of 32 k: vectors v = 0..3 of 64 B; byte 4i+j of vector v is row i, k = 8v + j in the low
// nibble and k = 8v + 4 + j in the high nibble. So 16 rows fill a 512-bit register (rows 0-7 and
// 8-15 two 256-bit ones, four rows a NEON one) whose dwords meet four consecutive activations.
//
// Pairs: the bf16 kernels multiply pairs of k. Within every 8 k the pairs are (0,2) (4,6) (1,3)
// (5,7): the order in which 16-bit lanes of code bytes yield them, shifted by 0, 4, 8, 12 bits.
// All other weights are stored in that order, too: one form of activations serves them. FP8 vector
// v holds pairs 2v and 2v+1: in each 16-byte lane L first pair 2v of rows 4L..4L+3, then 2v+1.
//
// UE5M3: E4M3 without sign, five exponent bits with bias 23, subnormals normalised; zero stays 0.
// Shifted into place it is the FP32 number  value * 2^-104, without a table and without subnormals.
//
// N is padded to 16 with zeros and K to the group. Design: nibble's own measurements of VNNI, AVX2
// and NEON kernels; the offset form of signed x unsigned products is folklore of int8 inference.
#pragma once

#include <cstdint>

namespace nibble::kernels::cpu {

inline constexpr int kPanelRows = 16;
inline constexpr int kBlockK = 32;  // k per activation block and per 256 B of codes
inline constexpr int kScaleBytes = 64;
inline constexpr int kCodeBytes = 256;  // of 16 rows x 32 k
inline constexpr int kPairsPerBlock = kBlockK / 2;

// Headers of INT4 and INT8 scale columns, without and with zero points in dwords of their own.
inline constexpr int kIntHeaderBytes = 64;
inline constexpr int kWideIntHeaderBytes = 128;
inline constexpr uint32_t kNarrowScaleMask = 0xFFFFFF00u;

// The k of a pair's two members within 8 k: pair p of a block is at 8 * (p / 4) + kPairLow[p % 4],
// and 2 further on.
inline constexpr int kPairLow[4] = {0, 4, 1, 5};

// An UE5M3 byte's value is E4M3 * 2^-104 once it stands in an FP32's exponent.
inline constexpr int kUe5m3Shift = 104;

// Activations are multiplied by 2^60 when they are prepared, the output by 2^-60: sums of products
// with UE5M3 scales stay far from FP32's subnormals, and BF16 instructions that flush subnormals
// see none. Exact for |x| < 2^59.
inline constexpr int kActivationShift = 60;

enum class CodeFormat { kNvfp4, kMxfp4 };

// Groups of the two formats: blocks of 32 k per group, scales per 32 k.
template <CodeFormat F>
struct CodeLayout;
template <>
struct CodeLayout<CodeFormat::kNvfp4> {
  static constexpr int kBlocks = 2;
  static constexpr int kScalesPerBlock = 2;
};
template <>
struct CodeLayout<CodeFormat::kMxfp4> {
  static constexpr int kBlocks = 4;
  static constexpr int kScalesPerBlock = 1;
};

// Unsigned code tables hold 2 * E2M1 + 12, because vpdpbusd and vpmaddubsw want one operand
// unsigned; integer sums start at a value that takes the 12 back.
inline constexpr int kCodeOffset = 12;

// Integer sums start at the bits of 1.5 * 2^23, too: the sum d is then the FP32 number
// 1.5 * 2^23 + d, and fma(sum, s, -1.5 * 2^23 * s) is d * s without a conversion, rounded once.
// Exact for |d| < 2^22; a block's |d| is at most 32 * 12 * 127 in int8, 16 * 12 * 2^14 in int16.
inline constexpr int32_t kFloatMagicBits = 0x4B400000;
inline constexpr float kFloatMagic = 12582912.0f;

// Prepared activations: 32 of one token. A tile of T tokens is laid out [block of 32 k][token].
//
// Quantised: x * 2^60 = q * scale. The starts are kFloatMagicBits - 12 * sum(q), over either half
// and over all of the block.
struct Int8Block {
  int8_t q[kBlockK];
  int32_t half_start[2];
  int32_t start;
  float scale;
};
static_assert(sizeof(Int8Block) == 48);

// INT4 codes less their zero points, which are at most 16, plus this are unsigned.
inline constexpr int kInt4Offset = 16;

// Quantised, for INT4 and INT8 weights: their zero points z differ by row, so that every row takes
// back z * sum(q) on its own, or meets the start of codes that have lost theirs.
struct Int8SumBlock {
  int8_t q[kBlockK];
  int32_t minus_sum;  // -sum(q): fits 16 bits
  int32_t start;      // kFloatMagicBits - kInt4Offset * sum(q)
  float scale;
};
static_assert(sizeof(Int8SumBlock) == 44);

// Fixed point: x * 2^60 = q * scale with a power of two as scale, in pair order. |q| < 2^14, so
// that a sum of 16 products with doubled E2M1 stays below 2^22.
struct Int16Block {
  int16_t q[kBlockK];
  float scale;
};
static_assert(sizeof(Int16Block) == 68);

// Int16Block's numbers as q = 256 * high + low, in order of k; the starts are Int8Block's, of q.
struct DigitBlock {
  int8_t high[kBlockK];
  int8_t low[kBlockK];
  int32_t half_start[2];
  float scale;
};
static_assert(sizeof(DigitBlock) == 76);

// BF16 activations of 4-bit codes, as fixed point of 23 bits: x * 2^60 = q * scale with a power of
// two as scale, the same for kInt24Blocks blocks, and |q| < 2^22: values down to 2^-14 of the
// largest keep all their BF16 bits and the others are off by 2^-22 of it at most, finer than sums
// in FP32 are. q = 2^16 digits[0] + 2^8 digits[1] + digits[2]. The starts are -12 * sum(q), modulo
// 2^32. A sum of 32 products with doubled E2M1 stays below 2^31.
inline constexpr int kInt24Blocks = 2;
struct Int24Block {
  int8_t digits[3][kBlockK];
  int32_t half_start[2];
  int32_t start;
  float scale;
};
static_assert(sizeof(Int24Block) == 112);

// BF16 activations of INT4 weights, likewise, with a scale per block and as in Int8SumBlock. A sum
// of 32 products stays below 2^31, as the largest q of BF16 is 2^22 - 2^14.
struct Int24SumBlock {
  int8_t digits[3][kBlockK];
  int32_t start;  // -kInt4Offset * sum(q)
  int32_t minus_sum;
  float scale;
};
static_assert(sizeof(Int24SumBlock) == 108);

// Quantised, for weights that are requantised to int8: the blocks of 32 k of kWideK k in one.
// Within every 8 k the order is 0, 4, 2, 6, 1, 5, 3, 7: that of the bytes of two vectors of code
// words. The start is kFloatMagicBits - 128 * sum(q).
inline constexpr int kWideK = 128;
inline constexpr int kWideOrder[8] = {0, 4, 2, 6, 1, 5, 3, 7};
struct WideInt8Block {
  int8_t q[kWideK];
  int32_t start;
  float scale;
};
static_assert(sizeof(WideInt8Block) == 136);

// As pairs for BF16 products: in pair order, times 2^60, in BF16 or, where a pair is two FP32
// multiply-adds, widened to FP32.
struct Bf16Block {
  uint16_t x[kBlockK];
};
static_assert(sizeof(Bf16Block) == 64);

// FP32 in pair order, not shifted when F16 and F32 weights meet it.
struct F32Block {
  float x[kBlockK];
};
static_assert(sizeof(F32Block) == 128);

}  // namespace nibble::kernels::cpu
