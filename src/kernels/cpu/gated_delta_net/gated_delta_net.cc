#include "kernels/cpu/gated_delta_net/gated_delta_net.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/causal_conv/causal_conv.h"
#include "kernels/cpu/gated_delta_net/delta_block.h"
#include "kernels/cpu/parallel.h"

namespace nibble::kernels::cpu {
namespace {

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
float Softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

constexpr int64_t kMinItemsPerThread = 4;

int64_t RoundUp(int64_t n) { return (n + 15) / 16 * 16; }

// One thread's scratch.
struct Scratch {
  float* q;     // (kDeltaTokens, padded Dk)
  float* k;     // (kDeltaTokens, padded Dk)
  float* v;     // (kDeltaTokens, Dv)
  float* o;     // (kDeltaTokens, Dv)
  float* taps;  // (W, Dk) of q, then of k, (W, Dv) of each value head of theirs

  static int64_t Floats(const GatedDeltaNetParams& p) {
    return 2 * kDeltaTokens * PaddedKeyDim(p.k_dim) + 2 * RoundUp(kDeltaTokens * p.v_dim) +
           RoundUp(p.conv_width * (2 * p.k_dim + p.v_heads / p.k_heads * p.v_dim));
  }

  Scratch(const GatedDeltaNetParams& p, float* base) {
    q = base;
    k = q + kDeltaTokens * PaddedKeyDim(p.k_dim);
    v = k + kDeltaTokens * PaddedKeyDim(p.k_dim);
    o = v + RoundUp(kDeltaTokens * p.v_dim);
    taps = o + RoundUp(kDeltaTokens * p.v_dim);
  }
};

class DeltaNetRun {
 public:
  DeltaNetRun(const VectorKernels& kernels, const GatedDeltaNetParams& p)
      : kernels_(kernels),
        p_(p),
        key_width_(int64_t{p.k_heads} * p.k_dim),
        padded_(PaddedKeyDim(p.k_dim)),
        conv_({.x = p.qkv,
               .stride = p.qkv_stride,
               .channels = 2 * key_width_ + int64_t{p.v_heads} * p.v_dim,
               .width = p.conv_width,
               .weight = p.conv_weight,
               .sequences = p.sequences,
               .window = p.conv_state}) {}

  // All tokens of sequence b through value heads [head, head + heads), all of one key head.
  void RunHeads(int64_t b, int64_t head, int64_t heads, const Scratch& scratch) const {
    const int64_t count = p_.sequences.q_start[b + 1] - p_.sequences.q_start[b];
    if (count == 0) return;
    const int64_t key_head = head / (p_.v_heads / p_.k_heads);
    const ConvChannels q = {.first = key_head * p_.k_dim,
                            .count = p_.k_dim,
                            .taps = scratch.taps,
                            .out = scratch.q,
                            .out_stride = padded_};
    const ConvChannels k = {.first = key_width_ + key_head * p_.k_dim,
                            .count = p_.k_dim,
                            .taps = q.taps + p_.conv_width * p_.k_dim,
                            .out = scratch.k,
                            .out_stride = padded_};
    const auto values_of = [&](int64_t i) -> ConvChannels {
      return {.first = 2 * key_width_ + (head + i) * p_.v_dim,
              .count = p_.v_dim,
              .taps = k.taps + p_.conv_width * (p_.k_dim + i * p_.v_dim),
              .out = scratch.v,
              .out_stride = p_.v_dim};
    };
    for (const ConvChannels& channels : {q, k}) TransposeTaps(conv_, channels);
    for (int64_t i = 0; i < heads; ++i) {
      TransposeTaps(conv_, values_of(i));
      if (p_.sequences.starts(b)) std::fill_n(StateOf(b, head + i), StateSize(), 0.0f);
    }
    std::fill_n(scratch.q, 2 * kDeltaTokens * padded_, 0.0f);  // and k

    for (int64_t at = 0; at < count; at += kDeltaTokens) {
      const int64_t tokens = std::min(kDeltaTokens, count - at);
      const int64_t next = p_.sequences.q_start[b] + at + tokens;
      const int64_t next_tokens = std::min(kDeltaTokens, count - at - tokens);
      for (const ConvChannels& channels : {q, k}) {
        Convolve(kernels_, conv_, channels, b, at, tokens);
        AskFor(p_.qkv + channels.first, p_.qkv_stride, channels.count, next, next_tokens);
      }
      kernels_.unit_rows(scratch.q, p_.k_dim, tokens, padded_,
                         1.0f / std::sqrt(static_cast<float>(p_.k_dim)));
      kernels_.unit_rows(scratch.k, p_.k_dim, tokens, padded_, 1.0f);
      for (int64_t i = 0; i < heads; ++i) {
        const ConvChannels v = values_of(i);
        Convolve(kernels_, conv_, v, b, at, tokens);
        AskFor(p_.qkv + v.first, p_.qkv_stride, p_.v_dim, next, next_tokens);
        AskFor(p_.z + (head + i) * p_.v_dim, p_.z_stride, p_.v_dim, next, next_tokens);
        RunBlock(b, head + i, at, tokens, scratch);
      }
    }
  }

  // After all heads of sequence b.
  void MoveWindow(int64_t b) const { cpu::MoveWindow(conv_, b); }

 private:
  int64_t StateSize() const { return int64_t{p_.v_dim} * p_.k_dim; }
  float* StateOf(int64_t b, int64_t head) const {
    std::byte* slot = p_.recurrent_state.base + p_.sequences.slots[b] * p_.recurrent_state.stride;
    return reinterpret_cast<float*>(slot) + head * StateSize();
  }

  // Prefetches columns [0, n) of `tokens` rows from `row` on: a head's part of a row is too short
  // for the hardware to see the next row coming.
  static void AskFor(const uint16_t* x, int64_t stride, int64_t n, int64_t row, int64_t tokens) {
    constexpr int64_t kLine = 64 / sizeof(uint16_t);
    for (int64_t t = row; t < row + tokens; ++t)
      for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(x + t * stride + i, 0, 2);
  }

  // Tokens [at, at + tokens) of sequence b, q, k and v of which are prepared, through one head.
  void RunBlock(int64_t b, int64_t head, int64_t at, int64_t tokens, const Scratch& scratch) const {
    const int64_t first = p_.sequences.q_start[b] + at;
    const float decay_rate = std::exp(p_.a_log[head]);
    float decay[kDeltaTokens], beta[kDeltaTokens];
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t row = (first + t) * p_.ba_stride + head;
      decay[t] = std::exp(-decay_rate * Softplus(p_.a[row] + p_.dt_bias[head]));
      beta[t] = Sigmoid(p_.b[row]);
    }
    kernels_.delta_rows({.tokens = tokens,
                         .k_dim = p_.k_dim,
                         .v_dim = p_.v_dim,
                         .q = scratch.q,
                         .k = scratch.k,
                         .v = scratch.v,
                         .decay = decay,
                         .beta = beta,
                         .state = StateOf(b, head),
                         .o = scratch.o});
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t row = first + t;
      kernels_.gated_norm(scratch.o + t * p_.v_dim, p_.z + row * p_.z_stride + head * p_.v_dim,
                          p_.norm_weight, p_.v_dim, p_.eps, p_.sigmoid_gate,
                          p_.out + (row * p_.v_heads + head) * p_.v_dim);
    }
  }

  const VectorKernels& kernels_;
  const GatedDeltaNetParams& p_;
  const int64_t key_width_;
  const int64_t padded_;
  const CausalConv conv_;
};

}  // namespace

size_t GatedDeltaNetWorkspace(int threads, const GatedDeltaNetParams& sizes) {
  return static_cast<size_t>(threads * Scratch::Floats(sizes)) * sizeof(float);
}

void GatedDeltaNet(const VectorKernels& kernels, const OpContext& context,
                   const GatedDeltaNetParams& params) {
  NIBBLE_CHECK(params.k_dim <= kMaxDeltaKeyDim && params.conv_width <= kMaxConvWidth,
               "Dk {}, conv width {}", params.k_dim, params.conv_width);
  const DeltaNetRun run(kernels, params);
  auto* memory = reinterpret_cast<float*>(context.workspace);
  // The heads of a key head convolve their q and k once, if that leaves every thread enough to do.
  const bool together =
      params.sequences.count * params.k_heads >= kMinItemsPerThread * Threads(context);
  const int64_t heads = together ? params.v_heads / params.k_heads : 1;
  const int64_t groups = params.v_heads / heads;
  ForEachItem(context, params.sequences.count * groups, [&](int64_t item, int thread) {
    run.RunHeads(item / groups, item % groups * heads, heads,
                 Scratch(params, memory + thread * Scratch::Floats(params)));
  });
  ForEachRange(context, params.sequences.count, 2, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) run.MoveWindow(b);
  });
}

}  // namespace nibble::kernels::cpu
