// One vector of eight outputs per thread; blockIdx.x is the token.
#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/activation/activation.h"
#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ int64_t FirstOfThread() {
  return (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kVector;
}

dim3 RowsGrid(int64_t rows, int64_t width) {
  constexpr int64_t kPerBlock = int64_t{kThreads} * kVector;
  return {static_cast<unsigned>(rows), static_cast<unsigned>((width + kPerBlock - 1) / kPerBlock)};
}

__global__ void __launch_bounds__(kThreads) ActivationKernel(ActivationParams p, bool aligned) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int64_t at = FirstOfThread(), left = p.f - at;
  const bool gated = p.activation.kind != ActivationKind::kSquaredRelu;
  const uint16_t* gate = p.gate_up + blockIdx.x * (gated ? 2 * p.f : p.f) + at;
  const uint4 gates = LoadBf16x8(gate, left, aligned);
  const uint4 ups = gated ? LoadBf16x8(gate + p.f, left, aligned) : gates;
  StoreBf16x8(p.out + blockIdx.x * p.f + at, Activate(p.activation, gates, ups), left, aligned);
}

__global__ void __launch_bounds__(kThreads) SigmoidGateKernel(SigmoidGateParams p, bool aligned) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int64_t at = FirstOfThread(), left = p.n - at;
  uint16_t* x = p.x + blockIdx.x * p.n + at;
  const uint16_t* gate = p.gate + blockIdx.x * p.gate_stride + at;
  float values[kVector], gates[kVector];
  Unpack(LoadBf16x8(x, left, aligned), values);
  Unpack(LoadBf16x8(gate, left, aligned), gates);
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = TimesSigmoid(values[i], gates[i]);
  StoreBf16x8(x, Pack(values), left, aligned);
}

}  // namespace

void ApplyActivation(const OpContext& context, const ActivationParams& params) {
  LaunchPdl(ActivationKernel, RowsGrid(params.t, params.f), kThreads, 0, StreamOf(context), params,
            VectorsAligned(params.f, params.gate_up, params.out));
}

void SigmoidGate(const OpContext& context, const SigmoidGateParams& params) {
  const bool aligned =
      VectorsAligned(params.n, params.x) && VectorsAligned(params.gate_stride, params.gate);
  LaunchPdl(SigmoidGateKernel, RowsGrid(params.t, params.n), kThreads, 0, StreamOf(context), params,
            aligned);
}

}  // namespace nibble::kernels::cuda
