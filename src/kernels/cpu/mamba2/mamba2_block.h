// A run of tokens through one head of Mamba-2's recurrence: what the leaf kernel sees.
//
// A row of the state stays in registers while the tokens pass, so that prompts read and write it
// once per block and decoding once per token. The arithmetic of a token is the same in both.
#pragma once

#include <cstdint>

namespace nibble::kernels {

// Tokens of a block: their B and C stay in the first-level cache.
inline constexpr int64_t kMamba2Tokens = 16;

// Width that rows of B and C are padded to: a power of two of vectors, so that few loops are
// compiled.
inline int64_t PaddedStateDim(int64_t state_dim) {
  int64_t padded = 16;
  while (padded < state_dim) padded *= 2;
  return padded;
}

struct Mamba2Block {
  int64_t tokens = 0;     // at most kMamba2Tokens
  int64_t head_dim = 0;   // P
  int64_t state_dim = 0;  // N, at most kMaxMamba2StateDim
  float* xy = nullptr;    // (tokens, P): x in, y out; rows xy_stride apart
  int64_t xy_stride = 0;
  const float* b = nullptr;  // (tokens, PaddedStateDim), zero beyond N; rows bc_stride apart
  const float* c = nullptr;  // the same
  int64_t bc_stride = 0;
  const float* decay = nullptr;  // (tokens): exp(-exp(a_log) dt')
  const float* dt = nullptr;     // (tokens): dt'
  float d = 0.0f;
  float* state = nullptr;  // (P, N)
};

}  // namespace nibble::kernels
