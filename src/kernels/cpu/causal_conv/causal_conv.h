// The depthwise causal convolution with silu that recurrent layers begin with, and the window of
// inputs that a sequence keeps for it between steps.
//
// Single-threaded: the ops divide channels and sequences. Sums run over the taps in order, so a
// token's result depends on its last W inputs alone.
#pragma once

#include <cstdint>

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

inline constexpr int64_t kMaxConvWidth = 8;

struct CausalConv {
  const uint16_t* x = nullptr;  // (T, C)
  int64_t stride = 0;
  int64_t channels = 0;           // C
  int64_t width = 0;              // W, at most kMaxConvWidth
  const float* weight = nullptr;  // (C, W), the last column meets the newest input
  const float* bias = nullptr;    // (C) or null
  StateSequences sequences;
  StateView window;  // (W - 1, C), oldest first
};

// A run of neighbouring channels and where their results go.
struct ConvChannels {
  int64_t first = 0;
  int64_t count = 0;
  float* taps = nullptr;  // (W, count): scratch, filled by TransposeTaps
  float* out = nullptr;   // rows out_stride apart
  int64_t out_stride = 0;
};

void TransposeTaps(const CausalConv& conv, const ConvChannels& channels);

// out row i = silu(convolution), rounded to BF16, of token at + i of sequence b in the step.
void Convolve(const VectorKernels& kernels, const CausalConv& conv, const ConvChannels& channels,
              int64_t b, int64_t at, int64_t tokens);

// The last W - 1 inputs of sequence b, for its next step. After all its tokens.
void MoveWindow(const CausalConv& conv, int64_t b);

}  // namespace nibble::kernels::cpu
