// The activations of feed-forward blocks, on pairs of FP32 values that are BF16 numbers. Shared by
// the op and by kernels that fuse it.
#pragma once

#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

// x σ(y). Where e^-y overflows the quotient is 0, as it should be.
__device__ __forceinline__ float TimesSigmoid(float x, float y) {
  return __fdividef(x, 1.0f + __expf(-y));
}

// 0.5 x (1 + tanh(z)) = x σ(2 z), which does not cancel.
__device__ __forceinline__ float GeluTanh(float x) {
  constexpr float kTwoSqrt2OverPi = 1.59576912160573071176f;
  return TimesSigmoid(x, kTwoSqrt2OverPi * fmaf(0.044715f * x * x, x, x));
}

// Comparisons are written so that NaN stays NaN. Not rounded yet.
__device__ __forceinline__ float Activate(const Activation& activation, float gate, float up) {
  switch (activation.kind) {
    case ActivationKind::kSilu:
      return ptx::RoundBf16(TimesSigmoid(gate, gate)) * up;
    case ActivationKind::kGeluTanh:
      return ptx::RoundBf16(GeluTanh(gate)) * up;
    case ActivationKind::kClampedSilu: {
      const float limit = activation.limit;
      const float g = limit < gate ? limit : gate;
      const float u = up < -limit ? -limit : limit < up ? limit : up;
      return (u + 1.0f) * TimesSigmoid(g, activation.alpha * g);
    }
    case ActivationKind::kSquaredRelu: {
      const float positive = gate < 0.0f ? 0.0f : gate;
      return positive * positive;
    }
  }
  return 0.0f;
}

template <ActivationKind kKind>
__device__ __forceinline__ uint4 ActivateVector(const Activation& activation, uint4 gates,
                                                uint4 ups) {
  const Activation known = {kKind, activation.alpha, activation.limit};
  float g[kVector], u[kVector];
  Unpack(gates, g);
  Unpack(ups, u);
#pragma unroll
  for (int i = 0; i < kVector; ++i) g[i] = Activate(known, g[i], u[i]);
  return Pack(g);
}

// Eight pairs, rounded. The kind is looked at once.
__device__ __forceinline__ uint4 Activate(const Activation& activation, uint4 gates, uint4 ups) {
  switch (activation.kind) {
    case ActivationKind::kSilu:
      return ActivateVector<ActivationKind::kSilu>(activation, gates, ups);
    case ActivationKind::kGeluTanh:
      return ActivateVector<ActivationKind::kGeluTanh>(activation, gates, ups);
    case ActivationKind::kClampedSilu:
      return ActivateVector<ActivationKind::kClampedSilu>(activation, gates, ups);
    case ActivationKind::kSquaredRelu:
      return ActivateVector<ActivationKind::kSquaredRelu>(activation, gates, ups);
  }
  return {};
}

}  // namespace nibble::kernels::cuda
