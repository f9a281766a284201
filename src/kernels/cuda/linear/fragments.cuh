// From a lane's bytes of a k-tile (weight_tiles.h) to its four A fragments, for every format. All
// steps are exact.
//
// How the codes of a row's block of 16 columns are ordered, so that few instructions decode them:
//
//   E2M1   two words (e2m1_order.h), from which come BF16 of the codes' values * 2^-126.
//   INT4   two words of 8 columns. Pair p (0..3) of a word is columns 2 p and 2 p + 1, the even one
//          in the low half, at bits 4 p of the halves. 128 + code is an integer in BF16.
//   bytes  words of 4 columns 4 j .. 4 j + 3, atom j: bytes 1 and 3 are the first two, 0 and 2 the
//          others. E4M3 moves to bits 15 and 10..4 of a half: a BF16 of its value * 2^-120.
//   BF16   as stored.
//
// Block scales enter before the MMA where that is exact in BF16:
//   NVFP4  scale s > 0 is stored as e << 3 | m with e = ⌊log2 s⌋ + 10 in 1..18 and 3 mantissa bits:
//          (byte << 4) + (235 << 7) is the BF16 s * 2^118, so that fragments hold value * s * 2^-8.
//          Scale 0: byte 0 over codes of zero (signs stay). row_scales: 2^8 * tensor scale.
//   E8M0   the exponent relative to the row's largest, byte = 254 - (largest - e), or 0 where that
//          is below kMinMxByte: value * 2^(byte - 127) * 2^-126 or 2^-120. row_scales: the rest.
// Column groups (INT4, INT8, FP8 in blocks) multiply the group's sum: GroupScales.
#pragma once

#include "kernels/cuda/linear/e2m1_order.h"
#include "kernels/cuda/linear/weight_tiles.h"

namespace nibble::kernels::cuda {

// E8M0 bytes below it would leave BF16; 127 octaves under the row's largest scale.
inline constexpr int kMinMxByte = 127;

namespace fragments {

// a times both halves' factor, exact: also before sm_90, which has no multiplication of BF16. The
// factor is the low half of `b` for row g, the high one for row g + 8: taken by the multiplication
// itself.
__device__ __forceinline__ uint32_t MultiplyBf16(uint32_t a, uint32_t b, int row) {
  uint32_t product;
  if (row == 0) {
    asm("{.reg .b16 low, high; .reg .b32 both; mov.b32 {low, high}, %2; mov.b32 both, {low, low};"
        "fma.rn.bf16x2 %0, %1, both, %3;}"
        : "=r"(product)
        : "r"(a), "r"(b), "r"(0x80008000u));
  } else {
    asm("{.reg .b16 low, high; .reg .b32 both; mov.b32 {low, high}, %2; mov.b32 both, {high, high};"
        "fma.rn.bf16x2 %0, %1, both, %3;}"
        : "=r"(product)
        : "r"(a), "r"(b), "r"(0x80008000u));
  }
  return product;
}

__device__ __forceinline__ uint32_t AddBf16(uint32_t a, uint32_t b) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3F803F80u), "r"(b));
  return sum;
}

// Bytes `first` (row g) and first + 1 (row g + 8) of a word at the bottom of the halves.
__device__ __forceinline__ uint32_t RowBytes(uint32_t word, int first) {
  return __byte_perm(word, 0, 0x4040 | (first + 1) << 8 | first);
}

// Two words of E2M1 per row -> four atoms. `scales`, here and below: two BF16, of rows g and g + 8.
__device__ __forceinline__ void DecodeE2M1(const uint4& codes, uint32_t scales,
                                           uint32_t (&a)[4][4]) {
  const uint32_t words[2][2] = {{codes.x, codes.y}, {codes.z, codes.w}};
#pragma unroll
  for (int row = 0; row < 2; ++row)
#pragma unroll
    for (int p = 0; p < kE2M1Pairs; ++p)
      a[p / 2][row + 2 * (p % 2)] = MultiplyBf16(PlaceE2M1(words[row], p), scales, row);
}

// Two E4M3 in the upper bytes of the halves -> BF16, value * 2^-120.
__device__ __forceinline__ uint32_t PlaceE4M3(uint32_t word) {
  return (word & 0x80008000u) | ((word >> 4) & 0x07F007F0u);
}

__device__ __forceinline__ void DecodeE4M3(const uint4 (&codes)[2], uint32_t scales,
                                           uint32_t (&a)[4][4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const uint32_t words[4] = {codes[row].x, codes[row].y, codes[row].z, codes[row].w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      a[j][row] = MultiplyBf16(PlaceE4M3(words[j]), scales, row);
      a[j][row + 2] = MultiplyBf16(PlaceE4M3(words[j] << 8), scales, row);
    }
  }
}

// code - zero of the two bytes at `first` and first + 2 of a word. `offset`: 2^23 + zero.
__device__ __forceinline__ uint32_t BytesMinusZero(uint32_t word, int first, float offset) {
  constexpr uint32_t kTwoTo23 = 0x4B000000u;
  const float low = __uint_as_float(__byte_perm(word, kTwoTo23, 0x7440 | first)) - offset;
  const float high = __uint_as_float(__byte_perm(word, kTwoTo23, 0x7440 | (first + 2))) - offset;
  return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

}  // namespace fragments

// The scales of one slice as a lane needs them, and the decoder that uses them.
//
//   LaneScales<kFormat> scales(slice_scales, group_columns, lane);   // shared or global memory
//   scales.Decode(codes, tile, a);                                   // tile 0..3 of the slice
//
// codes[v]: the lane's vector v of the k-tile. With HasGroups the fragments lack their group's
// scale: GroupScale(column) of rows g and g + 8 multiplies the sums, column 0..255 of the slice.
template <TileFormat kFormat>
struct LaneScales;

template <>
struct LaneScales<TileFormat::kNvfp4> {
  uint2 bytes;

  __device__ __forceinline__ LaneScales(const std::byte* scales, int /*group_columns*/, int lane)
      : bytes(*reinterpret_cast<const uint2*>(scales + lane * 8)) {}

  __device__ __forceinline__ uint32_t Rows(int tile) const {
    constexpr uint32_t kBias = (235u << 7) * 0x00010001u;
    return fragments::RowBytes(tile < 2 ? bytes.x : bytes.y, tile % 2 * 2) * 16u + kBias;
  }
  __device__ __forceinline__ void Decode(const uint4 (&codes)[1], int tile,
                                         uint32_t (&a)[4][4]) const {
    fragments::DecodeE2M1(codes[0], Rows(tile), a);
  }
};

struct MxScales {
  uint2 bytes;

  __device__ __forceinline__ MxScales(const std::byte* scales, int lane)
      : bytes(*reinterpret_cast<const uint2*>(scales + lane / 2 * 8)) {}

  __device__ __forceinline__ uint32_t Rows(int tile) const {
    return fragments::RowBytes(tile < 2 ? bytes.x : bytes.y, tile % 2 * 2) << 7;
  }
};

template <>
struct LaneScales<TileFormat::kMxfp4> : MxScales {
  __device__ __forceinline__ LaneScales(const std::byte* scales, int /*group_columns*/, int lane)
      : MxScales(scales, lane) {}
  __device__ __forceinline__ void Decode(const uint4 (&codes)[1], int tile,
                                         uint32_t (&a)[4][4]) const {
    fragments::DecodeE2M1(codes[0], Rows(tile), a);
  }
};

template <>
struct LaneScales<TileFormat::kMxfp8> : MxScales {
  __device__ __forceinline__ LaneScales(const std::byte* scales, int /*group_columns*/, int lane)
      : MxScales(scales, lane) {}
  __device__ __forceinline__ void Decode(const uint4 (&codes)[2], int tile,
                                         uint32_t (&a)[4][4]) const {
    fragments::DecodeE4M3(codes, Rows(tile), a);
  }
};

template <>
struct LaneScales<TileFormat::kBf16> {
  __device__ __forceinline__ LaneScales(const std::byte*, int /*group_columns*/, int /*lane*/) {}
  __device__ __forceinline__ void Decode(const uint4 (&codes)[4], int /*tile*/,
                                         uint32_t (&a)[4][4]) const {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const int row = v / 2, atom = v % 2 * 2;
      a[atom][row] = codes[v].x;
      a[atom][row + 2] = codes[v].y;
      a[atom + 1][row] = codes[v].z;
      a[atom + 1][row + 2] = codes[v].w;
    }
  }
};

template <>
struct LaneScales<TileFormat::kFp8> {
  __device__ __forceinline__ LaneScales(const std::byte*, int /*group_columns*/, int /*lane*/) {}
  __device__ __forceinline__ void Decode(const uint4 (&codes)[2], int /*tile*/,
                                         uint32_t (&a)[4][4]) const {
    constexpr uint32_t kTwoTo120 = 0x7B807B80u;
    fragments::DecodeE4M3(codes, kTwoTo120, a);
  }
};

// FP32 scales of column groups.
struct GroupScales {
  const float* scales;  // of row g: (groups, 16)
  const uint8_t* zeros;
  int group_columns;

  __device__ __forceinline__ GroupScales(const std::byte* slice_scales, int columns, int lane)
      : scales(reinterpret_cast<const float*>(slice_scales) + lane / 4),
        zeros(reinterpret_cast<const uint8_t*>(slice_scales) +
              kSliceColumns / columns * kTileRows * 4 + lane / 4),
        group_columns(columns) {}

  struct Rows {
    float low;
    float high;
  };
  __device__ __forceinline__ Rows GroupScale(int column) const {
    const float* at = scales + column / group_columns * kTileRows;
    return {at[0], at[8]};
  }
  struct Zeros {
    int low;
    int high;
  };
  // Of the lane's block of a k-tile.
  __device__ __forceinline__ Zeros ZerosOf(int tile) const {
    const int column = tile * kTileColumns + static_cast<int>(threadIdx.x % 4) * 16;
    const uint8_t* at = zeros + column / group_columns * kTileRows;
    return {at[0], at[8]};
  }
};

template <>
struct LaneScales<TileFormat::kFp8Groups> : GroupScales {
  using GroupScales::GroupScales;
  __device__ __forceinline__ void Decode(const uint4 (&codes)[2], int /*tile*/,
                                         uint32_t (&a)[4][4]) const {
    constexpr uint32_t kTwoTo120 = 0x7B807B80u;
    fragments::DecodeE4M3(codes, kTwoTo120, a);
  }
};

template <>
struct LaneScales<TileFormat::kInt4> : GroupScales {
  using GroupScales::GroupScales;
  __device__ __forceinline__ void Decode(const uint4 (&codes)[1], int tile,
                                         uint32_t (&a)[4][4]) const {
    const Zeros zero = ZerosOf(tile);
    const uint32_t words[2][2] = {{codes[0].x, codes[0].y}, {codes[0].z, codes[0].w}};
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      // -(128 + zero): integers up to 255 lie one unit apart from 128 on.
      const uint32_t minus = (0xC300u + (row == 0 ? zero.low : zero.high)) * 0x00010001u;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          const uint32_t code = (words[row][half] >> (4 * p) & 0x000F000Fu) | 0x43004300u;
          a[2 * half + p / 2][row + 2 * (p % 2)] = fragments::AddBf16(code, minus);
        }
      }
    }
  }
};

template <>
struct LaneScales<TileFormat::kInt8> : GroupScales {
  using GroupScales::GroupScales;
  __device__ __forceinline__ void Decode(const uint4 (&codes)[2], int tile,
                                         uint32_t (&a)[4][4]) const {
    const Zeros zero = ZerosOf(tile);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float offset = 8388608.0f + static_cast<float>(row == 0 ? zero.low : zero.high);
      const uint32_t words[4] = {codes[row].x, codes[row].y, codes[row].z, codes[row].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        a[j][row] = fragments::BytesMinusZero(words[j], 1, offset);
        a[j][row + 2] = fragments::BytesMinusZero(words[j], 0, offset);
      }
    }
  }
};

}  // namespace nibble::kernels::cuda
