// One CTA per row, the row in registers: thread i holds vectors i, i + threads, ... The number of
// threads follows from the row's width, so the order of the sum does, too.
#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm/norm.h"
#include "kernels/cuda/norm/normalize.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kMaxThreads = 1024;

// Few weights are held from before the wait on; many would not leave room for the row. Rows of up
// to 8192 values leave half of the registers to a CTA of the linear that follows.
template <int kVectors>
__global__ void __launch_bounds__(kMaxThreads, kVectors == 1 ? 2 : 1)
    RmsNormKernel(RmsNormParams p, int64_t x_stride, float inverse_d, bool aligned) {
  constexpr bool kWeightsFirst = kVectors <= 2;
  __shared__ float sums[kWarp];
  const auto at = [](int v) { return static_cast<int>((v * blockDim.x + threadIdx.x) * kVector); };
  const int d = static_cast<int>(p.d);
  float weight[kWeightsFirst ? kVectors : 1][kVector];
  if constexpr (kWeightsFirst) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) LoadF32x8(p.weight + at(v), d - at(v), aligned, weight[v]);
  }
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  uint16_t* x = p.x + blockIdx.x * x_stride;
  uint4 row[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) row[v] = LoadBf16x8(x + at(v), d - at(v), aligned);
  if (p.delta != nullptr) {
    const uint16_t* delta = p.delta + blockIdx.x * p.d;
    uint4 added[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) added[v] = LoadBf16x8(delta + at(v), d - at(v), aligned);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      row[v] = AddBf16x8(row[v], added[v]);
      StoreBf16x8(x + at(v), row[v], d - at(v), aligned);
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) sum = AddSquares(row[v], sum);
  const float inverse = InverseRoot(BlockSum(sum, sums), inverse_d, p.eps);

  uint16_t* out = p.out + blockIdx.x * p.d;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float late[kVector];
    if constexpr (!kWeightsFirst) LoadF32x8(p.weight + at(v), d - at(v), aligned, late);
    const float(&scale)[kVector] = kWeightsFirst ? weight[kWeightsFirst ? v : 0] : late;
    StoreBf16x8(out + at(v), NormVector(row[v], inverse, scale, p.style), d - at(v), aligned);
  }
}

constexpr int kFlatThreads = 128;

// One vector per thread.
__global__ void __launch_bounds__(kFlatThreads)
    AddKernel(uint16_t* x, const uint16_t* delta, int64_t n, bool aligned) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int64_t at = (int64_t{blockIdx.x} * kFlatThreads + threadIdx.x) * kVector;
  const uint4 sum =
      AddBf16x8(LoadBf16x8(x + at, n - at, aligned), LoadBf16x8(delta + at, n - at, aligned));
  StoreBf16x8(x + at, sum, n - at, aligned);
}

__global__ void __launch_bounds__(kFlatThreads)
    RoundKernel(const float* x, uint16_t* y, int64_t n, bool aligned) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int64_t at = (int64_t{blockIdx.x} * kFlatThreads + threadIdx.x) * kVector;
  float values[kVector];
  LoadF32x8(x + at, n - at, aligned, values);
  StoreBf16x8(y + at, Pack(values), n - at, aligned);
}

unsigned FlatBlocks(int64_t n) {
  constexpr int64_t kPerBlock = int64_t{kFlatThreads} * kVector;
  return static_cast<unsigned>((n + kPerBlock - 1) / kPerBlock);
}

}  // namespace

namespace {

void LaunchRmsNorm(const OpContext& context, const RmsNormParams& params, int64_t x_stride) {
  NIBBLE_CHECK(params.d <= kMaxNormWidth, "a norm over {} values; at most {}", params.d,
               kMaxNormWidth);
  const int64_t vectors = (params.d + kVector - 1) / kVector;
  const int64_t threads = std::min<int64_t>((vectors + kWarp - 1) / kWarp * kWarp, kMaxThreads);
  const int64_t per_thread = (vectors + threads - 1) / threads;
  const bool aligned = x_stride % kVector == 0 &&
                       VectorsAligned(params.d, params.x, params.delta, params.weight, params.out);
  const auto kernel = per_thread <= 1   ? RmsNormKernel<1>
                      : per_thread <= 2 ? RmsNormKernel<2>
                                        : RmsNormKernel<4>;
  LaunchPdl(kernel, static_cast<unsigned>(params.t), static_cast<unsigned>(threads), 0,
            StreamOf(context), params, x_stride, 1.0f / static_cast<float>(params.d), aligned);
}

}  // namespace

void RmsNorm(const OpContext& context, const RmsNormParams& params) {
  LaunchRmsNorm(context, params, params.d);
}

void NormRows(const OpContext& context, const InputNorm& norm, const uint16_t* x, int64_t x_stride,
              int64_t rows, int64_t d, uint16_t* out) {
  // Without a delta x is only read.
  LaunchRmsNorm(context,
                {.x = const_cast<uint16_t*>(x),
                 .weight = norm.weight,
                 .out = out,
                 .t = rows,
                 .d = d,
                 .eps = norm.eps,
                 .style = norm.style},
                x_stride);
}

void Add(const OpContext& context, const AddParams& params) {
  const int64_t n = params.t * params.d;
  LaunchPdl(AddKernel, FlatBlocks(n), kFlatThreads, 0, StreamOf(context), params.x, params.delta, n,
            VectorsAligned(n, params.x, params.delta));
}

void Round(const OpContext& context, const RoundParams& params) {
  LaunchPdl(RoundKernel, FlatBlocks(params.n), kFlatThreads, 0, StreamOf(context), params.x,
            params.y, params.n, VectorsAligned(params.n, params.x, params.y));
}

}  // namespace nibble::kernels::cuda
