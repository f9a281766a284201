// Activations as the prefill kernels read them: x permuted to the column order of the weights'
// atoms (weight_tiles.h) and laid out so that any tile of tokens is one contiguous copy.
//
// Tokens come in groups of 8, columns in tiles of 64. Piece (tile, group) is 1,024 bytes at
// (tile * groups + group) * 1024: 8 rows of 128 bytes in the 128-byte swizzle of wgmma.cuh, so that
// groups [a, b) of one column tile are the B operand of a wgmma as they lie. Position 16 j + p of a
// row is the column that position p of atom j has in the A fragments: with q = p / 2 mod 4 it is
// 16 q + 4 j + p mod 2, plus 2 in the upper half of p. Columns past K and tokens past M are zero.
//
// Or in parts of so many tokens, each laid out like that by itself, the last one filled up with
// zero tokens. Or, for tiles whose tokens lie here and there, rows: the same permutation, token by
// token.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

inline constexpr int kGroupTokens = 8;
inline constexpr int kPieceBytes = kGroupTokens * kTileColumns * 2;

// What PrepareTokens leaves to the kernel that multiplies (lay_out.cuh): all bands of tokens but
// the first.
struct RestOfTokens {
  const uint16_t* x = nullptr;  // (M, K); null: nothing is left
  int64_t x_stride = 0;
  int32_t m = 0;
  int32_t k = 0;
  int32_t band_groups = 0;  // of 8 tokens
  int32_t* done = nullptr;  // (bands): what has been laid out
};

struct PreparedTokens {
  std::byte* data = nullptr;  // 16-byte aligned
  int32_t groups = 0;         // ⌈M / 8⌉, or of a part
  int32_t tiles = 0;          // ⌈K / 64⌉
  RestOfTokens rest;
};

constexpr int64_t PreparedBytes(int64_t m, int64_t k) {
  return (m + kGroupTokens - 1) / kGroupTokens * ((k + kTileColumns - 1) / kTileColumns) *
         kPieceBytes;
}
// Of RestOfTokens::done.
constexpr int64_t DoneBytes(int64_t m, int64_t band_tokens) {
  return (m + band_tokens - 1) / band_tokens * static_cast<int64_t>(sizeof(int32_t));
}

struct PrepareTokensParams {
  const uint16_t* x = nullptr;  // (M, K) BF16
  int64_t x_stride = 0;
  int64_t m = 0;
  int64_t k = 0;
  // What x goes through first (tensor/quant_view.h), (K) each, or null.
  const int32_t* column_order = nullptr;
  const float* input_multiplier = nullptr;
  InputNorm norm;       // of x, where PreparationNorms says so
  int part_tokens = 0;  // of a part, a multiple of 8; 0: all tokens are one
  // Of the bands by which the kernel that multiplies lays out the rest, a multiple of 8, where that
  // is possible; 0: nothing is left to it.
  int band_tokens = 0;
};

// Whether the norm can be a part of the preparation.
bool PreparationNorms(const PrepareTokensParams& params);

// out (M, K up to a multiple of 64), dense and 16-byte aligned: permuted rows.
void PermuteRows(const PrepareTokensParams& params, uint16_t* out, void* stream);

// `memory`: PreparedBytes(m, k), m rounded up to whole parts, and DoneBytes(m, band_tokens);
// 16-byte aligned.
PreparedTokens PrepareTokens(const PrepareTokensParams& params, std::byte* memory, void* stream);

// Rows, (m, k) dense, to `out` as `layout` says, which is not rows: for the linear that reads them.
void LayOutRows(const uint16_t* rows, int64_t m, int64_t k, ActivationLayout layout, uint16_t* out,
                void* stream);

}  // namespace nibble::kernels::cuda
