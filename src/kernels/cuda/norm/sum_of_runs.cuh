// The last step of a norm's sum of squares (normalize.cuh) for rows of few runs.
#pragma once

#include "kernels/cuda/reduce.cuh"

namespace nibble::kernels::cuda {

// WarpSum over a row's runs, of which there are 8 or 16 at most, zeros behind the row's: without
// the steps that only add zeros.
template <int kRuns>
__device__ __forceinline__ float SumOfRuns(const float* runs, int lane) {
  static_assert(kRuns == 8 || kRuns == 16);
  float sum = runs[lane % 8];
  if constexpr (kRuns == 16) sum += runs[lane % 8 + 8];
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  return sum;
}

}  // namespace nibble::kernels::cuda
