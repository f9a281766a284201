#include "kernels/cpu/mamba2/mamba2.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/cpu/causal_conv/causal_conv.h"
#include "kernels/cpu/mamba2/mamba2_block.h"
#include "kernels/cpu/parallel.h"
#include "numerics/bf16.h"

namespace nibble::kernels::cpu {
namespace {

// Tokens whose convolved inputs are held at once.
constexpr int64_t kBlockTokens = 64;
// Channels of a convolution's task.
constexpr int64_t kTileChannels = 256;
// Elements per thread below which another thread costs more than it saves.
constexpr int64_t kGrainElements = 8192;

float Softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Rows [begin, begin + count) of the step, all of sequence b.
struct Piece {
  int64_t b = 0;
  int64_t begin = 0;
  int64_t count = 0;
};

class Mamba2Run {
 public:
  Mamba2Run(const VectorKernels& kernels, const OpContext& context, const Mamba2Params& p)
      : kernels_(kernels),
        context_(context),
        p_(p),
        width_(int64_t{p.heads} * p.head_dim),
        padded_(PaddedStateDim(p.state_dim)),
        bc_width_(2 * p.groups * padded_),
        conv_({.x = p.zxbcdt + width_,
               .stride = p.stride,
               .channels = width_ + 2 * int64_t{p.groups} * p.state_dim,
               .width = p.conv_width,
               .weight = p.conv_weight,
               .bias = p.conv_bias,
               .sequences = p.sequences,
               .window = p.conv_state}),
        xy_(reinterpret_cast<float*>(context.workspace)),
        bc_(xy_ + kBlockTokens * width_) {}

  static int64_t WorkspaceFloats(const Mamba2Params& p) {
    return kBlockTokens *
           (int64_t{p.heads} * p.head_dim + 2 * int64_t{p.groups} * PaddedStateDim(p.state_dim));
  }

  void Run() {
    std::fill_n(bc_, std::min(kBlockTokens, p_.t) * bc_width_, 0.0f);  // padding stays zero
    int64_t b = 0;
    for (int64_t begin = 0; begin < p_.t; begin += kBlockTokens) {
      b = FindPieces(begin, b);
      Convolve();
      ForEachItem(context_, piece_count_ * p_.heads,
                  [&](int64_t item, int) { Scan(pieces_[item / p_.heads], item % p_.heads); });
      GateAndNorm();
    }
    ForEachRange(context_, p_.sequences.count, kGrainElements / conv_.channels + 1,
                 [&](int64_t first, int64_t last) {
                   for (int64_t i = first; i < last; ++i) MoveWindow(conv_, i);
                 });
  }

 private:
  // The pieces of rows [begin, begin + kBlockTokens); b: a sequence at or before the first one.
  // Returns the last one.
  int64_t FindPieces(int64_t begin, int64_t b) {
    block_begin_ = begin;
    block_count_ = std::min(kBlockTokens, p_.t - begin);
    piece_count_ = 0;
    const int64_t end = begin + block_count_;
    for (int64_t at = begin; at < end;) {
      while (p_.sequences.q_start[b + 1] <= at) ++b;
      const int64_t piece_end = std::min<int64_t>(end, p_.sequences.q_start[b + 1]);
      pieces_[piece_count_++] = {.b = b, .begin = at, .count = piece_end - at};
      at = piece_end;
    }
    return b;
  }

  // x into xy, B and C into bc: tiles of x, then every group's B, then every group's C.
  void Convolve() const {
    const int64_t x_tiles = (width_ + kTileChannels - 1) / kTileChannels;
    const int64_t tiles = x_tiles + 2 * p_.groups;
    const int64_t grain = kGrainElements / (kTileChannels * block_count_) + 1;
    ForEachRange(context_, tiles, grain, [&](int64_t first, int64_t last) {
      float taps[kTileChannels * kMaxConvWidth];
      for (int64_t tile = first; tile < last; ++tile) {
        ConvChannels channels = {.taps = taps};
        if (tile < x_tiles) {
          channels.first = tile * kTileChannels;
          channels.count = std::min(kTileChannels, width_ - channels.first);
          channels.out = xy_ + channels.first;
          channels.out_stride = width_;
        } else {
          channels.first = width_ + (tile - x_tiles) * p_.state_dim;
          channels.count = p_.state_dim;
          channels.out = bc_ + (tile - x_tiles) * padded_;
          channels.out_stride = bc_width_;
        }
        ConvolveTile(channels);
      }
    });
  }

  void ConvolveTile(const ConvChannels& channels) const {
    TransposeTaps(conv_, channels);
    for (int64_t i = 0; i < piece_count_; ++i) {
      const Piece& piece = pieces_[i];
      ConvChannels rows = channels;
      rows.out += (piece.begin - block_begin_) * channels.out_stride;
      cpu::Convolve(kernels_, conv_, rows, piece.b, piece.begin - p_.sequences.q_start[piece.b],
                    piece.count);
    }
  }

  // A piece through one head.
  void Scan(const Piece& piece, int64_t head) const {
    const int64_t state_size = int64_t{p_.head_dim} * p_.state_dim;
    std::byte* slot =
        p_.recurrent_state.base + p_.sequences.slots[piece.b] * p_.recurrent_state.stride;
    float* state = reinterpret_cast<float*>(slot) + head * state_size;
    if (piece.begin == p_.sequences.q_start[piece.b] && p_.sequences.starts(piece.b))
      std::fill_n(state, state_size, 0.0f);
    const int64_t group = head / (p_.heads / p_.groups);
    const float rate = -std::exp(p_.a_log[head]);
    for (int64_t done = 0; done < piece.count; done += kMamba2Tokens) {
      const int64_t tokens = std::min(kMamba2Tokens, piece.count - done);
      const int64_t row = piece.begin + done;  // of the step
      const int64_t at = row - block_begin_;   // of the block
      float decay[kMamba2Tokens], dt[kMamba2Tokens];
      for (int64_t t = 0; t < tokens; ++t) {
        const uint16_t* inputs = p_.zxbcdt + (row + t) * p_.stride + width_ + conv_.channels;
        const float raw = Bf16ToFloat(inputs[head]) + p_.dt_bias[head];
        dt[t] = std::clamp(Softplus(raw), p_.dt_min, p_.dt_max);
        decay[t] = std::exp(rate * dt[t]);
      }
      kernels_.mamba2_rows({.tokens = tokens,
                            .head_dim = p_.head_dim,
                            .state_dim = p_.state_dim,
                            .xy = xy_ + at * width_ + head * p_.head_dim,
                            .xy_stride = width_,
                            .b = bc_ + at * bc_width_ + group * padded_,
                            .c = bc_ + at * bc_width_ + (p_.groups + group) * padded_,
                            .bc_stride = bc_width_,
                            .decay = decay,
                            .dt = dt,
                            .d = p_.d[head],
                            .state = state});
    }
  }

  void GateAndNorm() const {
    const int64_t group = width_ / p_.groups;
    ForEachRange(
        context_, block_count_, kGrainElements / width_ + 1, [&](int64_t first, int64_t last) {
          for (int64_t t = first; t < last; ++t) {
            const int64_t row = block_begin_ + t;
            for (int64_t i = 0; i < width_; i += group) {
              kernels_.gate_then_norm(xy_ + t * width_ + i, p_.zxbcdt + row * p_.stride + i,
                                      p_.norm_weight + i, group, p_.eps, p_.out + row * width_ + i);
            }
          }
        });
  }

  const VectorKernels& kernels_;
  const OpContext& context_;
  const Mamba2Params& p_;
  const int64_t width_;     // H P
  const int64_t padded_;    // N, padded
  const int64_t bc_width_;  // of a token's B and C, padded
  const CausalConv conv_;
  float* const xy_;  // (kBlockTokens, H P): x, then y in its place
  float* const bc_;  // (kBlockTokens, 2, G, padded N)

  int64_t block_begin_ = 0;  // row of the step
  int64_t block_count_ = 0;
  Piece pieces_[kBlockTokens];  // of the block
  int64_t piece_count_ = 0;
};

}  // namespace

size_t Mamba2Workspace(int, const Mamba2Params& sizes) {
  return static_cast<size_t>(Mamba2Run::WorkspaceFloats(sizes)) * sizeof(float);
}

void Mamba2(const VectorKernels& kernels, const OpContext& context, const Mamba2Params& params) {
  NIBBLE_CHECK(params.state_dim <= kMaxMamba2StateDim && params.conv_width <= kMaxConvWidth,
               "state size {}, conv width {}", params.state_dim, params.conv_width);
  Mamba2Run(kernels, context, params).Run();
}

}  // namespace nibble::kernels::cpu
