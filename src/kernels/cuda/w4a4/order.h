// From packed NVFP4 weights (weight_tiles.h, fragments.cuh) to the A fragments of the block-scaled
// FP4 MMA, and the order in which activations meet them: pure functions for host and GPUs.
//
// There is no second copy of the weights. Lane 4 g + q of a k-tile owns block q of rows g and g +
// 8, but a scale group of the MMA is half a register of two lanes. So neighbouring lanes of a quad
// exchange a word per row: the even one gives its second half block for the odd one's first. Then
// lane q holds half q mod 2 of blocks 2 ⌊q / 2⌋ (registers a0, a1) and 2 ⌊q / 2⌋ + 1 (a2, a3): MMA
// group j is block GroupBlock(j). Inside a word codes stay near where the decoder for BF16 wants
// them (e2m1_order.h), column NibbleColumn(i) in nibble i; the activations follow.
#pragma once

#include <cstdint>

#include "kernels/cuda/linear/e2m1_order.h"
#include "kernels/cuda/linear/weight_tiles.h"
#include "numerics/host_device.h"

namespace nibble::kernels::cuda::w4a4 {

// The block of 16 columns of a k-tile that is group j of its MMA, and back.
NIBBLE_HD constexpr int GroupBlock(int j) { return 2 * (j % 2) + j / 2; }
NIBBLE_HD constexpr int BlockGroup(int block) { return 2 * (block % 2) + block / 2; }

// The column of its eight that nibble i of a word holds.
NIBBLE_HD constexpr int NibbleColumn(int i) {
  constexpr int kPairs[4] = {3, 1, 0, 2};
  return 2 * kPairs[i % 4] + i / 4;
}

// The column of a k-tile that the MMA's column kk (0..63) holds.
NIBBLE_HD constexpr int TileColumn(int kk) {
  const int lane = kk % 32 / 8;
  const int block = lane / 2 * 2 + kk / 32;
  return 16 * block + lane % 2 * 8 + NibbleColumn(kk % 8);
}

// The codes of a row's block of weights, a nibble each: columns 0..7 and 8..15.
struct BlockNibbles {
  uint32_t words[2];
};
NIBBLE_HD constexpr BlockNibbles Nibbles(const uint32_t (&block)[2]) {
  BlockNibbles out = {};
  // Bits that are in their place after a shift; the masks keep what the steps before have placed.
  for (int i = 0; i < 2; ++i) {
    const uint32_t word = block[i];
    uint32_t placed = (word & 0x70007000u) | (word << 2 & ~0x70007000u);
    placed = (placed & 0x77707770u) | (word >> 4 & ~0x77707770u);
    out.words[i] = (placed & 0x7FF07FF0u) | ((word >> 6 | word << 26) & ~0x7FF07FF0u);
  }
  const uint32_t rest = e2m1_order::Rest(block);
  out.words[0] = (out.words[0] & 0xFFF0FFF0u) | (rest & ~0xFFF0FFF0u);
  out.words[0] = (out.words[0] & 0xFFF7FFF7u) | (rest >> 6 & ~0xFFF7FFF7u);
  out.words[1] = (out.words[1] & 0xFFF0FFF0u) | (rest >> 10 & ~0xFFF0FFF0u);
  out.words[1] = (out.words[1] & 0xFFF7FFF7u) | ((rest >> 16 | rest << 16) & ~0xFFF7FFF7u);
  return out;
}

// Four scales as packed (e << 3 | m of fragments.cuh) -> UE4M3. Those below 2^-6 are subnormal
// there.
NIBBLE_HD constexpr uint32_t Ue4m3Scales(uint32_t packed) {
  const uint32_t top = packed & 0xE0E0E0E0u;
  const uint32_t normal = (top | top << 1 | top << 2) & 0x80808080u;
  if (normal == 0x80808080u) return packed - 0x18181818u;
  uint32_t scales = 0;
  for (int i = 0; i < 32; i += 8) {
    const uint32_t byte = packed >> i & 255u;
    const uint32_t exponent = byte >> 3;
    const uint32_t small = exponent == 0 ? 0 : ((byte & 7u) | 8u) << exponent >> 4;
    scales |= (exponent >= 4 ? byte - 24u : small) << i;
  }
  return scales;
}

// ---- Activations in memory: groups of 8 tokens by slices of 256 columns, slice-major, so that the
// groups of a tile of tokens are contiguous. A piece (slice, group) is
//   codes    vector p (0, 1) of 32 lanes, 16 bytes each: b0, b1 of k-tile 2 p, then of 2 p + 1
//   scales   16 bytes per token: a word of MMA groups per k-tile
// Tokens past M and columns past K are zero.
inline constexpr int kGroupTokens = 8;
inline constexpr int kPieceCodes = 1024;
inline constexpr int kPieceBytes = kPieceCodes + kGroupTokens * 16;

// Byte of a piece where the word of lane 4 g + q, register r (b0, b1) of k-tile u lies.
NIBBLE_HD constexpr int CodeOffset(int u, int lane, int r) {
  return u / 2 * 512 + lane * 16 + u % 2 * 8 + r * 4;
}
NIBBLE_HD constexpr int ScaleOffset(int u, int token) { return kPieceCodes + token * 16 + u * 4; }

constexpr int64_t Groups(int64_t m) { return (m + kGroupTokens - 1) / kGroupTokens; }
constexpr int64_t Slices(int64_t k) { return (k + kSliceColumns - 1) / kSliceColumns; }
constexpr int64_t TokenBytes(int64_t m, int64_t k) { return Groups(m) * Slices(k) * kPieceBytes; }

}  // namespace nibble::kernels::cuda::w4a4
