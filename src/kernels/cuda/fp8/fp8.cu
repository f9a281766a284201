#include "kernels/cuda/fp8/fp8.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/activated_linear.h"
#include "kernels/cuda/activation/activation.h"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/fp8/scaled_tiles.cuh"
#include "kernels/cuda/fp8/tokens.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/norm/norm.h"

namespace nibble::kernels::cuda {
namespace fp8 {
namespace {

// Bounds the workspace.
constexpr int64_t kTokensAtOnce = 2048;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// What precedes the quantised tokens in the workspace.
int64_t NormedBytes(int64_t m, int64_t k) { return RoundUp(m * k * 2, 128); }

// Tiles of a wide shape and of a narrow one, and what a tile costs, relatively.
constexpr int kWide = 192, kNarrow = 64;
constexpr int kWideCost = 20, kNarrowCost = 9;

bool WideIsFaster(const WeightTiles& weight, int64_t m) {
  const auto cost = [&](int tokens, int of_tile) {
    const int64_t tiles = RoundUp(weight.n, 128) / 128 * (RoundUp(m, tokens) / tokens);
    return RoundUp(tiles, CurrentDevice().multiprocessors) * of_tile;
  };
  return cost(kWide, kWideCost) <= cost(kNarrow, kNarrowCost);
}

template <TileFormat kFormat, int kTokens>
void LaunchShape(const PrefillParams& p, const QuantizedTokens& x, cudaStream_t stream) {
  using Shape = ScaledShape<kFormat, kTokens>;
  const ScaledProblem problem = {.dense = CutDense<Shape>(p), .x = x};
  LaunchPdl(ScaledTilesKernel<Shape>,
            std::min(problem.dense.count(), CurrentDevice().multiprocessors), Shape::kThreads,
            Shape::kAllocatedBytes, stream, problem);
}

template <TileFormat kFormat>
void LaunchFormat(const PrefillParams& p, const QuantizedTokens& x, cudaStream_t stream) {
  if (WideIsFaster(p.weight, p.m)) return LaunchShape<kFormat, kWide>(p, x, stream);
  LaunchShape<kFormat, kNarrow>(p, x, stream);
}

}  // namespace
}  // namespace fp8

bool HasFp8() { return HasWgmma(CurrentCapability()); }

size_t LinearFp8Workspace(int64_t max_m, int64_t max_k) {
  const int64_t m = std::min(max_m, fp8::kTokensAtOnce);
  return static_cast<size_t>(fp8::NormedBytes(m, max_k) + fp8::QuantizedBytes(m, max_k) + 128);
}

void LinearFp8(const OpContext& context, const LinearParams& params) {
  const CudaWeight& weight = AsCuda(*params.weight);
  const int64_t k = weight.k();
  if (ComposesActivation(params))
    return LinearThenActivation(context, params, LinearFp8, ApplyActivation);
  NIBBLE_CHECK(weight.fp8().group > 0, "linear_fp8 of a weight that it does not take");
  NIBBLE_CHECK(LinearFp8Workspace(params.m, k) <= context.workspace_bytes,
               "FP8 linear of {} tokens: workspace of {} bytes", params.m, context.workspace_bytes);
  const auto address = reinterpret_cast<uintptr_t>(context.workspace);
  std::byte* const workspace = context.workspace + (128 - address % 128) % 128;
  for (int64_t token = 0; token < params.m; token += fp8::kTokensAtOnce) {
    const int64_t m = std::min(fp8::kTokensAtOnce, params.m - token);
    fp8::QuantizeParams rows = {.x = params.x + token * params.x_stride,
                                .x_stride = params.x_stride,
                                .m = m,
                                .k = k,
                                .norm = params.norm,
                                .as = weight.fp8()};
    std::byte* quantized = workspace;
    if (params.norm.weight != nullptr && !fp8::QuantizationNorms(rows)) {
      auto* const normed = reinterpret_cast<uint16_t*>(workspace);
      quantized += fp8::NormedBytes(m, k);
      NormRows(context, params.norm, rows.x, rows.x_stride, m, k, normed);
      rows.x = normed;
      rows.x_stride = k;
      rows.norm = {};
    }
    const int64_t first = token * params.y_stride;
    const PrefillParams product = {
        .weight = weight.tiles(),
        .bias = params.bias,
        .y = params.y == nullptr ? nullptr : params.y + first,
        .y_f32 = params.y_f32 == nullptr ? nullptr : params.y_f32 + first,
        .y_stride = params.y_stride,
        .add = params.add,
        .activates = params.activation != nullptr,
        .activation = ActivationOf(params),
        .m = m};
    const fp8::QuantizedTokens x = fp8::QuantizeTokens(rows, quantized, context.stream);
    if (weight.tiles().format == TileFormat::kFp8Groups) {
      fp8::LaunchFormat<TileFormat::kFp8Groups>(product, x, StreamOf(context));
    } else {
      fp8::LaunchFormat<TileFormat::kFp8>(product, x, StreamOf(context));
    }
  }
}

}  // namespace nibble::kernels::cuda
