#include "kernels/cpu/causal_conv/causal_conv.h"

#include <algorithm>

namespace nibble::kernels::cpu {
namespace {

constexpr int64_t kTokens = 16;  // of one call of the leaf

uint16_t* Window(const CausalConv& conv, int64_t b) {
  return reinterpret_cast<uint16_t*>(conv.window.base +
                                     conv.sequences.slots[b] * conv.window.stride);
}

// Inputs of all channels at a token, counted from the step's first one of sequence b: they lie in
// the step, before it in the window, and before the sequence there are none (null).
const uint16_t* InputRow(const CausalConv& conv, int64_t b, int64_t token) {
  if (token >= 0) return conv.x + (conv.sequences.q_start[b] + token) * conv.stride;
  if (conv.sequences.starts(b)) return nullptr;
  return Window(conv, b) + (conv.width - 1 + token) * conv.channels;
}

}  // namespace

void TransposeTaps(const CausalConv& conv, const ConvChannels& channels) {
  const float* weight = conv.weight + channels.first * conv.width;
  for (int64_t c = 0; c < channels.count; ++c)
    for (int64_t j = 0; j < conv.width; ++j)
      channels.taps[j * channels.count + c] = weight[c * conv.width + j];
}

void Convolve(const VectorKernels& kernels, const CausalConv& conv, const ConvChannels& channels,
              int64_t b, int64_t at, int64_t tokens) {
  const float* bias = conv.bias != nullptr ? conv.bias + channels.first : nullptr;
  const int64_t before = conv.width - 1;
  for (int64_t done = 0; done < tokens; done += kTokens) {
    const int64_t count = std::min(kTokens, tokens - done);
    const uint16_t* rows[kTokens + kMaxConvWidth];
    for (int64_t i = 0; i < count + before; ++i) {
      const uint16_t* row = InputRow(conv, b, at + done + i - before);
      rows[i] = row != nullptr ? row + channels.first : nullptr;
    }
    kernels.conv_silu(rows, channels.taps, bias, conv.width, channels.count, count,
                      channels.out + done * channels.out_stride, channels.out_stride);
  }
}

void MoveWindow(const CausalConv& conv, int64_t b) {
  const int64_t count = conv.sequences.q_start[b + 1] - conv.sequences.q_start[b];
  if (count == 0) return;
  uint16_t* window = Window(conv, b);
  const int64_t width = conv.width - 1;
  // Row i becomes the input at count - width + i, which lies behind row i where it is in the
  // window: rows are moved in order.
  for (int64_t i = 0; i < width; ++i) {
    const uint16_t* row = InputRow(conv, b, count - width + i);
    uint16_t* out = window + i * conv.channels;
    if (row != nullptr)
      std::copy_n(row, conv.channels, out);
    else
      std::fill_n(out, conv.channels, uint16_t{0});
  }
}

}  // namespace nibble::kernels::cpu
