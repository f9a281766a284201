// The arithmetic of an RMS norm, for every kernel that norms: the norm itself, and linears that
// norm what they read. All of them have the same bits.
//
// Order of the sum of squares of a row of D values, D <= kMaxFusedNormWidth: vector v of 8 values
// is a chain of FMAs from zero; 32 neighbouring vectors, a *run* of 256 values, are added by a
// butterfly (WarpSum), and so are the runs, run r standing in lane r, zeros in the others. Wider
// rows: norm.cu.
#pragma once

#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/norm/norm.h"
#include "kernels/cuda/norm/norm_scale.cuh"
#include "kernels/cuda/reduce.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kRunValues = kWarp * kVector;
static_assert(kMaxFusedNormWidth == kWarp * kRunValues);

__device__ __forceinline__ float AddSquares(uint4 vector, float sum) {
  float values[kVector];
  Unpack(vector, values);
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum = fmaf(values[i], values[i], sum);
  return sum;
}

__device__ __forceinline__ float InverseRoot(float sum, float inverse_d, float eps) {
  return rsqrtf(sum * inverse_d + eps);
}

__device__ __forceinline__ uint4 NormVector(uint4 vector, float inverse,
                                            const float (&weight)[kVector], NormStyle style) {
  float values[kVector];
  Unpack(vector, values);
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = NormScale(values[i], inverse, weight[i], style);
  return Pack(values);
}

}  // namespace nibble::kernels::cuda
