// The arithmetic of one token of the gated delta rule, shared by both routes.
#pragma once

#include "kernels/cuda/recurrent/causal_conv.cuh"
#include "kernels/cuda/recurrent/state_rows.cuh"

namespace nibble::kernels::cuda {

struct DeltaGates {
  float decay;  // e^g
  float beta;
};

// decay_rate = exp(a_log).
__device__ __forceinline__ DeltaGates GatesOf(float b, float a, float decay_rate, float dt_bias) {
  return {.decay = expf(-decay_rate * Softplus(a + dt_bias)), .beta = Sigmoid(b)};
}

// Sums over a head's columns before q and k are unit vectors. Order: the four columns of a piece,
// pieces i pairwise as a tree, then a row's lanes.
struct KeySums {
  float qq;
  float kk;
  float qk;
};

__device__ __forceinline__ float PieceDot(const float* a, const float* b) {
  return fmaf(a[3], b[3], fmaf(a[2], b[2], fmaf(a[1], b[1], a[0] * b[0])));
}

template <int kPieces>
__device__ __forceinline__ float TreeDot(const Columns<kPieces>& a, const Columns<kPieces>& b) {
  float sums[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) sums[i] = PieceDot(a.x + 4 * i, b.x + 4 * i);
#pragma unroll
  for (int step = 1; step < kPieces; step *= 2) {
#pragma unroll
    for (int i = 0; i < kPieces; i += 2 * step) sums[i] += sums[i + step];
  }
  return SumOverRowLanes(sums[0]);
}

// What makes q and k unit vectors, q times 1 / sqrt(Dk); and the product of both.
struct UnitScales {
  float q;
  float k;
  float qk;
};

__device__ __forceinline__ UnitScales UnitScalesOf(const KeySums& sums, int k_dim) {
  UnitScales scales;
  scales.q = rsqrtf(static_cast<float>(k_dim)) * rsqrtf(sums.qq + 1e-6f);
  scales.k = rsqrtf(sums.kk + 1e-6f);
  scales.qk = sums.qk * (scales.q * scales.k) + 0.0f;  // never -0, whatever was padded
  return scales;
}

// From rows of raw q and k in shared memory. They are loaded again where they are used: registers
// are scarcer.
template <int kPieces>
__device__ __forceinline__ UnitScales ScalesOf(const float* q_row, const float* k_row, int k_dim,
                                               int j) {
  const Columns<kPieces> q = LoadSharedRow<kPieces>(q_row, j);
  const Columns<kPieces> k = LoadSharedRow<kPieces>(k_row, j);
  const KeySums sums = {.qq = TreeDot(q, q), .kk = TreeDot(k, k), .qk = TreeDot(q, k)};
  return UnitScalesOf(sums, k_dim);
}

template <int kPieces>
__device__ __forceinline__ Columns<kPieces> LoadScaledRow(const float* row, float scale, int j) {
  asm volatile("" ::: "memory");  // a load of its own
  Columns<kPieces> x = LoadSharedRow<kPieces>(row, j);
#pragma unroll
  for (int i = 0; i < 4 * kPieces; ++i) x[i] *= scale;
  return x;
}

// A row through a token, S its state before: p = S k, r = S q, d = β (v - e^g p),
// o = e^g r + (q·k) d, S ← e^g S + d kᵀ. Both dot products read the same state, so that only one is
// waited for.

__device__ __forceinline__ float DeltaOf(float recalled, float v, DeltaGates gates) {
  return gates.beta * fmaf(-gates.decay, recalled, v);
}

template <int kPieces>
__device__ __forceinline__ void Learn(const Columns<kPieces>& k, float decay, float d,
                                      Columns<kPieces>* s) {
#pragma unroll
  for (int i = 0; i < 4 * kPieces; ++i) (*s)[i] = fmaf(d, k[i], decay * (*s)[i]);
}

__device__ __forceinline__ float OutputOf(float read, float decay, float d, float qk) {
  return fmaf(qk, d, decay * read);
}

// norm_weight * o / rms(o), gated by z.
__device__ __forceinline__ float GatedOutput(float o, float inverse_rms, float norm_weight, float z,
                                             bool sigmoid_gate) {
  const float gate = sigmoid_gate ? Sigmoid(z) : z * Sigmoid(z);
  return norm_weight * o * inverse_rms * gate;
}

}  // namespace nibble::kernels::cuda
