#include "kernels/cpu/gated_delta_net/gated_delta_net.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/gated_delta_net/delta_block.h"
#include "kernels/cpu/parallel.h"

namespace nibble::kernels::cpu {
namespace {

constexpr int64_t kMaxWidth = 8;  // of the convolution

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
float Softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

int64_t RoundUp(int64_t n) { return (n + 15) / 16 * 16; }

// One thread's scratch.
struct Scratch {
  float* q;     // (kDeltaTokens, padded Dk)
  float* k;     // (kDeltaTokens, padded Dk)
  float* v;     // (kDeltaTokens, Dv)
  float* o;     // (kDeltaTokens, Dv)
  float* taps;  // (W, Dk) of q, then of k, (W, Dv) of v
  // Inputs before the first token of a sequence: max(Dk, Dv) BF16 zeros.
  uint16_t* zeros;

  static int64_t Floats(const GatedDeltaNetParams& p) {
    return 2 * kDeltaTokens * PaddedKeyDim(p.k_dim) + 2 * RoundUp(kDeltaTokens * p.v_dim) +
           RoundUp(p.conv_width * (2 * p.k_dim + p.v_dim)) + RoundUp(std::max(p.k_dim, p.v_dim));
  }

  Scratch(const GatedDeltaNetParams& p, float* base) {
    q = base;
    k = q + kDeltaTokens * PaddedKeyDim(p.k_dim);
    v = k + kDeltaTokens * PaddedKeyDim(p.k_dim);
    o = v + RoundUp(kDeltaTokens * p.v_dim);
    taps = o + RoundUp(kDeltaTokens * p.v_dim);
    zeros = reinterpret_cast<uint16_t*>(taps + RoundUp(p.conv_width * (2 * p.k_dim + p.v_dim)));
  }
};

class DeltaNetRun {
 public:
  DeltaNetRun(const VectorKernels& kernels, const GatedDeltaNetParams& p)
      : kernels_(kernels),
        p_(p),
        key_width_(int64_t{p.k_heads} * p.k_dim),
        channels_(2 * key_width_ + int64_t{p.v_heads} * p.v_dim),
        padded_(PaddedKeyDim(p.k_dim)) {}

  // All tokens of sequence b through one value head.
  void RunHead(int64_t b, int64_t head, const Scratch& scratch) const {
    const int64_t first = p_.sequences.q_start[b];
    const int64_t count = p_.sequences.q_start[b + 1] - first;
    if (count == 0) return;
    const int64_t key_head = head / (p_.v_heads / p_.k_heads);
    const Channels q = {.first = key_head * p_.k_dim,
                        .count = p_.k_dim,
                        .taps = scratch.taps,
                        .out = scratch.q,
                        .out_stride = padded_};
    const Channels k = {.first = key_width_ + key_head * p_.k_dim,
                        .count = p_.k_dim,
                        .taps = q.taps + p_.conv_width * p_.k_dim,
                        .out = scratch.k,
                        .out_stride = padded_};
    const Channels v = {.first = 2 * key_width_ + head * p_.v_dim,
                        .count = p_.v_dim,
                        .taps = k.taps + p_.conv_width * p_.k_dim,
                        .out = scratch.v,
                        .out_stride = p_.v_dim};
    for (const Channels& channels : {q, k, v}) TransposeTaps(channels);
    std::fill_n(scratch.q, 2 * kDeltaTokens * padded_, 0.0f);  // and k
    std::fill_n(scratch.zeros, std::max(p_.k_dim, p_.v_dim), uint16_t{0});
    const int64_t state_size = int64_t{p_.v_dim} * p_.k_dim;
    float* state = reinterpret_cast<float*>(Slot(p_.recurrent_state, b)) + head * state_size;
    if (p_.sequences.starts(b)) std::fill_n(state, state_size, 0.0f);

    const float decay_rate = std::exp(p_.a_log[head]);
    for (int64_t at = 0; at < count; at += kDeltaTokens) {
      const int64_t tokens = std::min(kDeltaTokens, count - at);
      for (const Channels& channels : {q, k, v}) Convolve(b, channels, at, tokens, scratch.zeros);
      kernels_.unit_rows(scratch.q, p_.k_dim, tokens, padded_,
                         1.0f / std::sqrt(static_cast<float>(p_.k_dim)));
      kernels_.unit_rows(scratch.k, p_.k_dim, tokens, padded_, 1.0f);
      float decay[kDeltaTokens], beta[kDeltaTokens];
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t row = (first + at + t) * p_.ba_stride + head;
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
                           .state = state,
                           .o = scratch.o});
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t row = first + at + t;
        kernels_.gated_norm(scratch.o + t * p_.v_dim, p_.z + row * p_.z_stride + head * p_.v_dim,
                            p_.norm_weight, p_.v_dim, p_.eps, p_.sigmoid_gate,
                            p_.out + (row * p_.v_heads + head) * p_.v_dim);
      }
    }
  }

  // The last W - 1 inputs of sequence b, for its next step. After all its heads.
  void MoveWindow(int64_t b) const {
    const int64_t first = p_.sequences.q_start[b];
    const int64_t count = p_.sequences.q_start[b + 1] - first;
    if (count == 0) return;
    auto* window = reinterpret_cast<uint16_t*>(Slot(p_.conv_state, b));
    const int64_t width = p_.conv_width - 1;
    const int64_t kept = std::max<int64_t>(width - count, 0);
    if (p_.sequences.starts(b)) {
      std::fill_n(window, kept * channels_, uint16_t{0});
    } else {
      std::copy_n(window + (width - kept) * channels_, kept * channels_, window);
    }
    for (int64_t i = kept; i < width; ++i) {
      std::copy_n(p_.qkv + (first + count - width + i) * p_.qkv_stride, channels_,
                  window + i * channels_);
    }
  }

 private:
  // A run of the convolution's channels.
  struct Channels {
    int64_t first;
    int64_t count;
    float* taps;  // (W, count)
    float* out;   // (tokens, out_stride)
    int64_t out_stride;
  };

  std::byte* Slot(const StateView& view, int64_t b) const {
    return view.base + p_.sequences.slots[b] * view.stride;
  }

  void TransposeTaps(const Channels& channels) const {
    const float* weight = p_.conv_weight + channels.first * p_.conv_width;
    for (int64_t c = 0; c < channels.count; ++c)
      for (int64_t j = 0; j < p_.conv_width; ++j)
        channels.taps[j * channels.count + c] = weight[c * p_.conv_width + j];
  }

  // Tokens [at, at + tokens) of sequence b. Inputs lie in the step, before it in the window, and
  // before the sequence are zero.
  void Convolve(int64_t b, const Channels& channels, int64_t at, int64_t tokens,
                const uint16_t* zeros) const {
    const uint16_t* rows[kDeltaTokens + kMaxWidth];
    const auto* window = reinterpret_cast<const uint16_t*>(Slot(p_.conv_state, b));
    const int64_t before = p_.conv_width - 1;
    for (int64_t i = 0; i < tokens + before; ++i) {
      const int64_t token = at + i - before;
      if (token >= 0) {
        rows[i] = p_.qkv + (p_.sequences.q_start[b] + token) * p_.qkv_stride + channels.first;
      } else if (p_.sequences.starts(b)) {
        rows[i] = zeros;
      } else {
        rows[i] = window + (before + token) * channels_ + channels.first;
      }
    }
    kernels_.conv_silu(rows, channels.taps, p_.conv_width, channels.count, tokens, channels.out,
                       channels.out_stride);
  }

  const VectorKernels& kernels_;
  const GatedDeltaNetParams& p_;
  const int64_t key_width_;
  const int64_t channels_;
  const int64_t padded_;
};

}  // namespace

size_t GatedDeltaNetWorkspace(int threads, const GatedDeltaNetParams& sizes) {
  return static_cast<size_t>(threads * Scratch::Floats(sizes)) * sizeof(float);
}

void GatedDeltaNet(const VectorKernels& kernels, const OpContext& context,
                   const GatedDeltaNetParams& params) {
  NIBBLE_CHECK(params.k_dim <= kMaxDeltaKeyDim && params.conv_width <= kMaxWidth,
               "Dk {}, conv width {}", params.k_dim, params.conv_width);
  const DeltaNetRun run(kernels, params);
  auto* memory = reinterpret_cast<float*>(context.workspace);
  ForEachItem(context, params.sequences.count * params.v_heads, [&](int64_t item, int thread) {
    run.RunHead(item / params.v_heads, item % params.v_heads,
                Scratch(params, memory + thread * Scratch::Floats(params)));
  });
  ForEachRange(context, params.sequences.count, 2, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) run.MoveWindow(b);
  });
}

}  // namespace nibble::kernels::cpu
