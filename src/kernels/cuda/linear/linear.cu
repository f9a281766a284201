#include "kernels/cuda/linear/linear.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/decode.h"
#include "kernels/cuda/prefill/prefill.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "numerics/bf16.h"

namespace nibble::kernels::cuda {
namespace {

// Tokens whose transformed activations wait in the workspace at a time.
constexpr int64_t kTransformTokens = 1024;

constexpr int kTransformThreads = 256;

__global__ void TransformKernel(const int32_t* order, const float* multiplier, const uint16_t* x,
                                int64_t x_stride, int64_t k, uint16_t* out) {
  ptx::LaunchSuccessor();
  ptx::WaitForPredecessor();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kTransformThreads + threadIdx.x;
  if (column >= k) return;
  const int64_t token = blockIdx.y;
  uint16_t value = x[token * x_stride + (order == nullptr ? column : order[column])];
  if (multiplier != nullptr) value = Bf16FromFloat(Bf16ToFloat(value) * multiplier[column]);
  out[token * k + column] = value;
}

// Whichever kernel computes a product, its bits are the same. Beyond a few tokens the decode kernel
// is bound by its MMAs: about 15 ns per token and million weights on an H100.
bool PrefillIsFaster(const WeightTiles& weight, int64_t m) {
  constexpr int64_t kFewTokens = 8;
  if (m <= kFewTokens || !HasPrefill(weight.format)) return false;
  if (m > kMaxDecodeTokens) return true;
  const double weights = static_cast<double>(weight.n) * weight.k_tiles * kTileColumns;
  const double decode = weights * (1.5e-8 * static_cast<double>(m) + 1e-7);
  return PrefillMicroseconds(weight, m) < decode;
}

// Linear of x that meets the weight as it is.
void PlainLinear(const OpContext& context, const LinearParams& p) {
  const CudaWeight& weight = AsCuda(*p.weight);
  for (int64_t token = 0; token < p.m; token += kMaxDecodeTokens) {
    const int m = static_cast<int>(std::min<int64_t>(kMaxDecodeTokens, p.m - token));
    const DecodeArgs args = {
        .weight = weight.tiles(),
        .x = p.x + token * p.x_stride,
        .x_stride = p.x_stride,
        .bias = p.bias,
        .y = p.y == nullptr ? nullptr : p.y + token * p.y_stride,
        .y_f32 = p.y_f32 == nullptr ? nullptr : p.y_f32 + token * p.y_stride,
        .y_stride = p.y_stride,
        .m = m,
    };
    LaunchDecode(args, PlanDecode(weight.tiles(), m), context.stream);
  }
}

}  // namespace

Result<std::unique_ptr<PackedWeight>> PackWeight(const PackParams& params) {
  int index = 0;
  cudaGetDevice(&index);
  NIBBLE_ASSIGN(Device * device, CudaDevice(index));
  NIBBLE_ASSIGN(std::unique_ptr<CudaWeight> weight, CudaWeight::Pack(params, *device));
  return std::unique_ptr<PackedWeight>(std::move(weight));
}

void TransformActivations(const CudaWeight& weight, const uint16_t* x, int64_t x_stride, int64_t m,
                          uint16_t* out, void* stream) {
  const int64_t k = weight.k();
  const auto blocks = static_cast<unsigned>((k + kTransformThreads - 1) / kTransformThreads);
  LaunchPdl(TransformKernel, dim3(blocks, static_cast<unsigned>(m)), dim3(kTransformThreads), 0,
            static_cast<cudaStream_t>(stream), weight.column_order(), weight.input_multiplier(), x,
            x_stride, k, out);
}

size_t LinearWorkspace(int64_t max_m, int64_t max_k) {
  const auto transformed =
      static_cast<size_t>(std::min(max_m, kTransformTokens) * max_k) * sizeof(uint16_t);
  return std::max(transformed, PrefillWorkspace(max_m, max_k));
}

void Linear(const OpContext& context, const LinearParams& params) {
  const CudaWeight& weight = AsCuda(*params.weight);
  if (PrefillIsFaster(weight.tiles(), params.m)) {
    Prefill(context, params);
    return;
  }
  if (!weight.transforms_x()) {
    PlainLinear(context, params);
    return;
  }
  NIBBLE_CHECK(LinearWorkspace(params.m, weight.k()) <= context.workspace_bytes,
               "linear of {} tokens: workspace of {} bytes", params.m, context.workspace_bytes);
  auto* const transformed = reinterpret_cast<uint16_t*>(context.workspace);
  for (int64_t token = 0; token < params.m; token += kTransformTokens) {
    LinearParams part = params;
    part.m = std::min(kTransformTokens, params.m - token);
    TransformActivations(weight, params.x + token * params.x_stride, params.x_stride, part.m,
                         transformed, context.stream);
    part.x = transformed;
    part.x_stride = weight.k();
    if (part.y != nullptr) part.y += token * params.y_stride;
    if (part.y_f32 != nullptr) part.y_f32 += token * params.y_stride;
    PlainLinear(context, part);
  }
}

size_t HeadLinearWorkspace(int /*threads*/, int64_t max_t, int64_t k) {
  return LinearWorkspace(max_t, k);
}

void HeadLinear(const OpContext& context, const HeadLinearParams& p) {
  for (size_t h = 0; h < p.weights.size(); ++h) {
    Linear(context, {.x = p.x + static_cast<int64_t>(h) * p.x_head_stride,
                     .x_stride = p.x_stride,
                     .weight = p.weights[h],
                     .y = p.y + static_cast<int64_t>(h) * p.y_head_stride,
                     .y_stride = p.y_stride,
                     .m = p.t});
  }
}

}  // namespace nibble::kernels::cuda
