// The depthwise causal convolution with silu that recurrent layers begin with, and the window of
// inputs that a sequence keeps for it between steps. Sums run from the bias over the taps in order,
// oldest input first; inputs before a sequence's first token are zero.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/approximate.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/recurrent/step_sequence.cuh"
#include "numerics/bf16.h"

namespace nibble::kernels::cuda {

inline constexpr int kMaxConvWidth = 8;
inline constexpr int kPairWidth = 4;  // of ConvPair: that of all known models

struct CausalConv {
  const uint16_t* x = nullptr;  // (T, C)
  int64_t stride = 0;
  int32_t channels = 0;           // C
  int32_t width = 0;              // W, 2..kMaxConvWidth
  const float* weight = nullptr;  // (C, W), the last column meets the newest input
  const float* bias = nullptr;    // (C) or null
  StateView window;               // (W - 1, C), oldest first
  bool pairs = false;             // ConvPair serves
  bool vectors = false;           // loads of four neighbouring channels are aligned

  // `granule`: divides every border between heads, groups and parts of the channels.
  void SetAlignment(int64_t granule) {
    const auto aligned = [&](int64_t elements) {
      const auto all = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(window.base) |
                       static_cast<uintptr_t>(window.stride) |
                       static_cast<uintptr_t>(2 * (stride | granule | channels));
      return all % static_cast<uintptr_t>(2 * elements) == 0;
    };
    pairs = aligned(2) && width == kPairWidth && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
    vectors = aligned(4);
  }
};

__device__ __forceinline__ float Sigmoid(float x) {
  return ptx::FastReciprocal(1.0f + ptx::FastExp(-x));
}

// Rounded to BF16, as the convolution's outputs are.
__device__ __forceinline__ float SiluBf16(float sum) { return ptx::RoundBf16(sum * Sigmoid(sum)); }

__device__ __forceinline__ float Softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// The input of sequence s at its `offset`-th token of the step; negative ones lie in the window.
__device__ __forceinline__ uint16_t ConvInput(const CausalConv& conv, const StepSequence& s,
                                              int64_t offset, int64_t channel) {
  if (offset >= 0) return conv.x[(s.first + offset) * conv.stride + channel];
  if (s.starts) return 0;
  return StateAt<uint16_t>(conv.window, s)[(offset + conv.width - 1) * conv.channels + channel];
}

// The window after the step of a prompt. Nobody reads the old one any more.
__device__ __forceinline__ void MoveWindow(const CausalConv& conv, const StepSequence& s,
                                           int64_t channel) {
  uint16_t inputs[kMaxConvWidth - 1];
#pragma unroll
  for (int j = 0; j < kMaxConvWidth - 1; ++j)
    if (j < conv.width - 1) inputs[j] = ConvInput(conv, s, s.count - (conv.width - 1) + j, channel);
  uint16_t* window = StateAt<uint16_t>(conv.window, s);
#pragma unroll
  for (int j = 0; j < kMaxConvWidth - 1; ++j)
    if (j < conv.width - 1) window[j * int64_t{conv.channels} + channel] = inputs[j];
}

// Two neighbouring channels of a thread, the first even, from token to token, for steps of few
// tokens: all but the newest input is summed beforehand, and the window stays in registers until
// nobody reads the old one any more.
class ConvPair {
 public:
  // channel < 0: none. Reads the window.
  __device__ void Begin(const CausalConv& conv, const StepSequence& s, int channel) {
    channel_ = channel;
    if (channel < 0) return;
    const uint16_t* window = StateAt<uint16_t>(conv.window, s) + channel;
#pragma unroll
    for (int j = 0; j < kPairWidth - 1; ++j)
      inputs_[j] = s.starts ? 0 : Load(window + int64_t{j} * conv.channels);
    Sum(conv);
  }

  __device__ uint32_t LoadInput(const CausalConv& conv, int64_t row) const {
    return channel_ < 0 ? 0 : Load(conv.x + row * conv.stride + channel_);
  }

  // The outputs of a token.
  __device__ float2 Next(uint32_t input) {
    if (channel_ < 0) return {};
#pragma unroll
    for (int j = 0; j < kPairWidth - 2; ++j) inputs_[j] = inputs_[j + 1];
    inputs_[kPairWidth - 2] = input;
    return {SiluBf16(fmaf(newest_tap_[0], Low(input), sum_[0])),
            SiluBf16(fmaf(newest_tap_[1], High(input), sum_[1]))};
  }

  // Before a further token.
  __device__ void Sum(const CausalConv& conv) {
    static_assert(kPairWidth == 4);
    if (channel_ < 0) return;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float4 taps = *(reinterpret_cast<const float4*>(conv.weight) + channel_ + e);
      const auto x = [&](int j) { return e == 0 ? Low(inputs_[j]) : High(inputs_[j]); };
      const float bias = conv.bias != nullptr ? conv.bias[channel_ + e] : 0.0f;
      sum_[e] = fmaf(taps.z, x(2), fmaf(taps.y, x(1), fmaf(taps.x, x(0), bias)));
      newest_tap_[e] = taps.w;
    }
  }

  __device__ void StoreWindow(const CausalConv& conv, const StepSequence& s) const {
    if (channel_ < 0) return;
    uint16_t* window = StateAt<uint16_t>(conv.window, s) + channel_;
#pragma unroll
    for (int j = 0; j < kPairWidth - 1; ++j)
      *reinterpret_cast<uint32_t*>(window + int64_t{j} * conv.channels) = inputs_[j];
  }

 private:
  __device__ static float Low(uint32_t bits) { return __uint_as_float(bits << 16); }
  __device__ static float High(uint32_t bits) { return __uint_as_float(bits & 0xFFFF0000u); }
  __device__ static uint32_t Load(const uint16_t* from) {
    return *reinterpret_cast<const uint32_t*>(from);
  }

  int channel_ = -1;
  float sum_[2] = {};
  float newest_tap_[2] = {};
  uint32_t inputs_[kPairWidth - 1] = {};  // the last of both channels, the newest last
};

// Four neighbouring channels of a thread through successive tokens, with taps and history in
// registers. kWidth: W, or 0 for any.
template <int kWidth>
class ConvChannels {
 public:
  // `left` channels exist from this one on: any number, also none and less. It is not clamped to
  // 0..4 here, nor by callers: nvcc 13.0 fuses clamps from both sides and a later test for the
  // upper bound into one instruction of sm_90 (VIMNMX.RELU), whose predicate also holds below the
  // lower one.
  __device__ ConvChannels(const CausalConv& conv, int64_t channel, int left)
      : conv_(conv), channel_(channel), left_(left) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      bias_[e] = e < left && conv.bias != nullptr ? conv.bias[channel + e] : 0.0f;
      if (kWidth == kPairWidth && conv.pairs) {
        float4 taps = {};
        if (e < left) taps = *reinterpret_cast<const float4*>(conv.weight + (channel + e) * 4);
        const float of_channel[4] = {taps.x, taps.y, taps.z, taps.w};
#pragma unroll
        for (int j = 0; j < kTaps && j < 4; ++j) taps_[j][e] = of_channel[j];
        continue;
      }
#pragma unroll
      for (int j = 0; j < kTaps; ++j)
        taps_[j][e] = e < left && Used(j)
                          ? conv.weight[(channel + e) * conv.width + j - (kTaps - conv.width)]
                          : 0.0f;
    }
  }

  // The next token is the `offset`-th of s.
  __device__ void Rewind(const StepSequence& s, int64_t offset) {
    s_ = s;
    at_ = offset;
    uint2 history[kTaps - 1] = {};
    if (offset >= kTaps - 1) {
      LoadRows(Row(offset - (kTaps - 1)), history);
    } else {
      const uint16_t* window = StateAt<uint16_t>(conv_.window, s) + channel_;
#pragma unroll
      for (int j = 0; j < kTaps - 1; ++j) {
        const int64_t at = offset - (kTaps - 1) + j;
        if (Used(j) && at >= 0) {
          history[j] = Load(Row(at));
        } else if (Used(j) && !s.starts) {
          history[j] = Load(window + (at + conv_.width - 1) * conv_.channels);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kTaps - 1; ++j) {
      if (!Used(j)) history[j] = {};
      Unpack(history[j], history_[j]);
    }
  }

  // The inputs of the next kCount tokens, all requested at once.
  template <int kCount>
  __device__ void LoadInputs(uint2 (&inputs)[kCount]) const {
    LoadRows(Row(at_), inputs);
  }

  __device__ void Next(float (&out)[4]) { Next(Load(Row(at_)), out); }

  // With the token's input.
  __device__ void Next(uint2 bits, float (&out)[4]) {
    float input[4];
    Unpack(bits, input);
    ++at_;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float sum = bias_[e];
#pragma unroll
      for (int j = 0; j < kTaps - 1; ++j)
        if (Used(j)) sum = fmaf(taps_[j][e], history_[j][e], sum);
      out[e] = SiluBf16(fmaf(taps_[kTaps - 1][e], input[e], sum));
#pragma unroll
      for (int j = 0; j < kTaps - 2; ++j) history_[j][e] = history_[j + 1][e];
      history_[kTaps - 2][e] = input[e];
    }
  }

 private:
  static constexpr int kTaps = kWidth > 0 ? kWidth : kMaxConvWidth;

  // Narrower convolutions use the last taps.
  __device__ bool Used(int j) const { return kWidth > 0 || j >= kTaps - conv_.width; }

  __device__ const uint16_t* Row(int64_t offset) const {
    return conv_.x + (s_.first + offset) * conv_.stride + channel_;
  }

  // Successive tokens' inputs.
  template <int kCount>
  __device__ void LoadRows(const uint16_t* from, uint2 (&inputs)[kCount]) const {
    if (conv_.vectors && left_ >= 4) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        inputs[i] = *reinterpret_cast<const uint2*>(from + i * conv_.stride);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) inputs[i] = Load(from + i * conv_.stride);
    }
  }

  // Four BF16, zeros where there are no channels.
  __device__ uint2 Load(const uint16_t* from) const {
    if (conv_.vectors && left_ >= 4) return *reinterpret_cast<const uint2*>(from);
    uint32_t x[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = e < left_ ? from[e] : 0;
    return make_uint2(x[0] | x[1] << 16, x[2] | x[3] << 16);
  }

  __device__ static void Unpack(uint2 bits, float (&x)[4]) {
    x[0] = ptx::FirstBf16(bits.x), x[1] = ptx::SecondBf16(bits.x);
    x[2] = ptx::FirstBf16(bits.y), x[3] = ptx::SecondBf16(bits.y);
  }

  const CausalConv& conv_;
  const int64_t channel_;
  const int left_;
  StepSequence s_;
  int64_t at_ = 0;
  float taps_[kTaps][4];
  float history_[kTaps - 1][4];
  float bias_[4];
};

// How many tokens in a row a warp of a prompt's convolution takes: long runs read fewer inputs
// twice, short ones fill the device.
inline int PrepareRun(int64_t tokens, int64_t jobs) {
  int run = 16;
  while (run > 2 && tokens * jobs < int64_t{run} * 4096) run /= 2;
  return run;
}

// The tokens of a warp's run one after the other, with the sequence that each belongs to, but for
// those that have been taken in chunks.
template <typename Rewind, typename Token>
__device__ void ForEachToken(const StateSequences& sequences, const DeltaChunks& chunks,
                             int64_t first, int64_t end, const Rewind& rewind, const Token& token) {
  int64_t b = SequenceOfRow(sequences, first);
  for (int64_t t = first; t < end;) {
    while (b < sequences.count && sequences.q_start[b + 1] <= t) ++b;
    if (b == sequences.count) return;
    const StepSequence s = StepSequence::AfterChunks(sequences, chunks, b);
    t = max(t, s.first);
    const int64_t stop = min(end, s.first + s.count);
    if (t < stop) rewind(s, t - s.first);
    for (; t < stop; ++t) token(t);
  }
}

__device__ __forceinline__ void StoreBf16x4(uint16_t* to, const float (&x)[4]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(ptx::PackBf16(x[0], x[1]), ptx::PackBf16(x[2], x[3]));
}

}  // namespace nibble::kernels::cuda
