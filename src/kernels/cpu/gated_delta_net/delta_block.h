// A run of tokens through one head of the gated delta rule: what the leaf kernel sees.
//
// A row of the state stays in registers while the tokens pass, so that prompts read and write it
// once per block and decoding once per token. The arithmetic of a token is the same in both.
#pragma once

#include <cstdint>

namespace nibble::kernels {

// Tokens of a block: their q and k stay in the first-level cache.
inline constexpr int64_t kDeltaTokens = 16;

// Widths that scratch rows are padded to: a power of two of vectors, so that few loops are
// compiled.
inline int64_t PaddedKeyDim(int64_t k_dim) {
  int64_t padded = 16;
  while (padded < k_dim) padded *= 2;
  return padded;
}

struct DeltaBlock {
  int64_t tokens = 0;            // at most kDeltaTokens
  int64_t k_dim = 0;             // Dk, at most kMaxDeltaKeyDim
  int64_t v_dim = 0;             // Dv
  const float* q = nullptr;      // (tokens, PaddedKeyDim), zero beyond Dk
  const float* k = nullptr;      // (tokens, PaddedKeyDim), zero beyond Dk
  const float* v = nullptr;      // (tokens, Dv)
  const float* decay = nullptr;  // (tokens): e^g
  const float* beta = nullptr;   // (tokens)
  float* state = nullptr;        // (Dv, Dk)
  float* o = nullptr;            // (tokens, Dv)
};

}  // namespace nibble::kernels
