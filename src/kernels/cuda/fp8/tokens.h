// Activations as linear_fp8's kernel reads them: E4M3 codes, permuted to the order of the weights'
// bytes and laid out so that any tile of tokens is one contiguous copy, and their scales.
//
// Tokens come in groups of 8, columns in groups of 128. Piece (column group, token group) is 1,024
// bytes at (column group * token groups + token group) * 1024: 8 rows of 128 bytes in the 128-byte
// swizzle of wgmma.cuh. Byte 64 t + 32 i + p of a row is the column that byte p of atom i, columns
// 8 i .. 8 i + 7 of every lane's 16, of k-tile t has in the A fragments (fragments.cuh): with q = p
// / 4 mod 4 and half h = p / 16 it is 64 t + 16 q + 8 i + 4 h + {2, 0, 3, 1}[p mod 4]. Columns past
// K and tokens past M are zero.
//
// Scales: (column groups, 8 * token groups), or one row of them where a token has one scale.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/op_params.h"
#include "numerics/fp8_activations.h"

namespace nibble::kernels::cuda::fp8 {

inline constexpr int kTokensOfGroup = 8;
inline constexpr int kPieceBytes = kTokensOfGroup * kFp8GroupColumns;

struct QuantizedTokens {
  const std::byte* codes = nullptr;  // 128-byte aligned
  const float* scales = nullptr;
  int32_t token_groups = 0;   // ⌈M / 8⌉
  int32_t column_groups = 0;  // ⌈K / 128⌉
};

constexpr int64_t TokenGroups(int64_t m) { return (m + kTokensOfGroup - 1) / kTokensOfGroup; }
constexpr int64_t ColumnGroups(int64_t k) { return (k + kFp8GroupColumns - 1) / kFp8GroupColumns; }

// Codes, and scales of every column group.
constexpr int64_t QuantizedBytes(int64_t m, int64_t k) {
  return TokenGroups(m) * ColumnGroups(k) *
         (kPieceBytes + kTokensOfGroup * static_cast<int64_t>(sizeof(float)));
}

struct QuantizeParams {
  const uint16_t* x = nullptr;  // (M, K) BF16
  int64_t x_stride = 0;
  int64_t m = 0;
  int64_t k = 0;
  InputNorm norm;  // of x, where QuantizationNorms says so
  Fp8Activations as;
};

// Whether the norm can be a part of the quantisation.
bool QuantizationNorms(const QuantizeParams& params);

// `memory`: QuantizedBytes(m, k), 128-byte aligned.
QuantizedTokens QuantizeTokens(const QuantizeParams& params, std::byte* memory, void* stream);

}  // namespace nibble::kernels::cuda::fp8
