// The last step of an RMS norm on one value. Shared by the op and by kernels that norm their input.
#pragma once

#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// inverse: 1 / sqrt(mean + eps).
__device__ __forceinline__ float NormScale(float x, float inverse, float weight, NormStyle style) {
  const float normalized = x * inverse;
  if (style == NormStyle::kRoundThenScale) return ptx::RoundBf16(normalized) * weight;
  return normalized * (style == NormStyle::kScaleOnePlus ? 1.0f + weight : weight);
}

}  // namespace nibble::kernels::cuda
