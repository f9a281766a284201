// The leaf kernels of norm, activation, experts, rope, attention and sampling, one table per
// instruction set.
//
// Each is pure arithmetic on the caller's memory, single-threaded; the ops (norm/norm.h and so on)
// split the work among threads and call through the table. The files vector_kernels_<isa>.cc
// compile the same *_impl.h for one instruction set each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace nibble::kernels {

struct AttentionChunk;  // attention/attention_chunk.h
struct AttentionState;
struct DeltaBlock;   // gated_delta_net/delta_block.h
struct Mamba2Block;  // mamba2/mamba2_block.h

struct VectorKernels {
  // x (n) += delta (n), rounded to BF16.
  void (*add)(uint16_t* x, const uint16_t* delta, int64_t n);
  // out (d) = x (d) normalised, scaled as style says. out may be x.
  void (*rms_norm)(const uint16_t* x, const float* weight, int64_t d, float eps, NormStyle style,
                   uint16_t* out);
  // out (f) = activation(gate) * up; up is not used where there is no gate.
  void (*activate)(const Activation& activation, const uint16_t* gate, const uint16_t* up,
                   int64_t f, uint16_t* out);
  // x (n) *= sigmoid(gate).
  void (*sigmoid_gate)(uint16_t* x, const uint16_t* gate, int64_t n);
  // sum (n) += weight * x.
  void (*accumulate)(float* sum, const float* x, float weight, int64_t n);
  // out = in with pairs (i, i + half) turned; only 2 * half elements. out may be in.
  void (*rotate)(const uint16_t* in, const float* cos, const float* sin, int64_t half,
                 uint16_t* out);
  // The same with pairs (2i, 2i + 1).
  void (*rotate_neighbours)(const uint16_t* in, const float* cos, const float* sin, int64_t half,
                            uint16_t* out);
  // x (n) *= scale.
  void (*scale_row)(uint16_t* x, float scale, int64_t n);
  // out (n) = E4M3(in / scale), saturating.
  void (*encode_e4m3)(const uint16_t* in, float scale, int64_t n, uint8_t* out);

  // Attention: see attention/attention_chunk.h.
  void (*attend_chunk)(const AttentionChunk& chunk, const AttentionState& state);
  void (*merge_state)(const AttentionState& from, const AttentionState& into, int64_t rows,
                      int64_t head_dim);
  void (*finish_row)(const AttentionState& state, int64_t row, int64_t head_dim, const float* sink,
                     float value_scale, uint16_t* out);
  // Queries in (rows, Dh) as attend_chunk takes them, as rows `first` on of out.
  void (*copy_queries)(const uint16_t* in, int64_t first, int64_t rows, int64_t head_dim,
                       float* out);
  void (*round)(const float* in, int64_t n, uint16_t* out);  // FP32 to BF16

  // Recurrent layers: a depthwise convolution of `width` taps (width, n), plus bias (n) or null,
  // then silu, over m tokens of n channels. rows[t + j] is what tap j of token t meets; null before
  // the sequence. out: rounded to BF16, rows out_stride apart.
  void (*conv_silu)(const uint16_t* const* rows, const float* taps, const float* bias,
                    int64_t width, int64_t n, int64_t m, float* out, int64_t out_stride);
  // Each of m rows (n), stride apart, times scale / sqrt(sum of squares + 1e-6).
  void (*unit_rows)(float* rows, int64_t n, int64_t m, int64_t stride, float scale);
  // Gated DeltaNet: see gated_delta_net/delta_block.h.
  void (*delta_rows)(const DeltaBlock& block);
  // out (n) = weight * x / sqrt(mean(x²) + eps) * silu(z), or * sigmoid(z).
  void (*gated_norm)(const float* x, const uint16_t* z, const float* weight, int64_t n, float eps,
                     bool sigmoid, uint16_t* out);

  // Mamba-2: see mamba2/mamba2_block.h.
  void (*mamba2_rows)(const Mamba2Block& block);
  // y (n) *= silu(z); then out = weight * y / sqrt(mean(y²) + eps).
  void (*gate_then_norm)(float* y, const uint16_t* z, const float* weight, int64_t n, float eps,
                         uint16_t* out);

  // Sampling. The largest logit and its smallest index; index -1 if that is -inf, or +inf, which
  // NaN counts as. The others expect finite logits and -inf.
  void (*best_logit)(const float* logits, int64_t n, float* value, int64_t* index);
  // out (n) = exp((logit - largest) * inverse_temperature); returns the sum.
  float (*softmax_weights)(const float* logits, int64_t n, float largest, float inverse_temperature,
                           float* out);
  // The same sum without the weights.
  float (*softmax_sum)(const float* logits, int64_t n, float largest, float inverse_temperature);
  // Appends first + i for every logits[i] > threshold; returns how many.
  int64_t (*collect_above)(const float* logits, int64_t n, float threshold, int32_t first,
                           int32_t* ids);
  // How many logits are above / equal to value.
  int64_t (*count_above)(const float* logits, int64_t n, float value);
  int64_t (*count_equal)(const float* logits, int64_t n, float value);
  // The sum of the terms of kernels/logits_hash.h.
  uint64_t (*sum_hash_terms)(const float* logits, int64_t n);
};

namespace generic {
extern const VectorKernels kVectorKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const VectorKernels kVectorKernels;
}
namespace avx512 {
extern const VectorKernels kVectorKernels;
}
namespace avx512bf16 {
extern const VectorKernels kVectorKernels;
}
#elif defined(__aarch64__)
namespace neon {
extern const VectorKernels kVectorKernels;
}
#endif

}  // namespace nibble::kernels
