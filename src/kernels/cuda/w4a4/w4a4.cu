#include "kernels/cuda/w4a4/w4a4.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/activated_linear.h"
#include "kernels/cuda/activation/activation.h"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/norm/norm.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/w4a4/order.h"
#include "kernels/cuda/w4a4/tile.cuh"
#include "kernels/cuda/w4a4/tokens.h"

namespace nibble::kernels::cuda {
namespace w4a4 {
namespace {

constexpr int kTokens = 128;  // of a CTA

struct Args {
  WeightTiles weight;
  const std::byte* tokens = nullptr;
  int groups = 0;
  DenseEnd end;  // of all tokens
};

__global__ void __launch_bounds__(kThreads) LinearKernel(const __grid_constant__ Args p) {
#ifdef NIBBLE_COMPILE_W4A4
  extern __shared__ __align__(16) std::byte ring[];
  const int first_token = static_cast<int>(blockIdx.x) * kTokens;
  const int first_group = first_token / kGroupTokens;
  const TileWork work = {.weight = p.weight.data,
                         .first_row_tile = static_cast<int>(blockIdx.y) * kRowTiles,
                         .tokens = p.tokens + int64_t{first_group} * kPieceBytes,
                         .slice_bytes = int64_t{p.groups} * kPieceBytes,
                         .groups = p.groups - first_group};
  DenseEnd end = p.end;
  end.m -= first_token;
  if (end.y != nullptr) end.y += first_token * end.y_stride;
  if (end.y_f32 != nullptr) end.y_f32 += first_token * end.y_stride;
  RunTile<kTokens>(p.weight, work, end, ring, [] {
    ptx::WaitForPredecessor();
    ptx::LaunchSuccessor();
  });
#endif
}

// Bounds the workspace.
constexpr int64_t kTokensAtOnce = 2048;

// What precedes the quantised tokens in the workspace.
size_t NormedBytes(int64_t m, int64_t k) {
  return static_cast<size_t>((m * k * 2 + 255) / 256 * 256);
}

unsigned Blocks(int64_t items, int per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

}  // namespace
}  // namespace w4a4

bool HasW4a4() { return HasBlockScaledMma(CurrentCapability()); }
bool HasEmulatedW4a4() { return CurrentDevice().major == 9; }

size_t LinearW4a4Workspace(int64_t max_m, int64_t max_k) {
  const int64_t m = std::min(max_m, w4a4::kTokensAtOnce);
  return w4a4::NormedBytes(m, max_k) + static_cast<size_t>(w4a4::TokenBytes(m, max_k));
}

void LinearW4a4(const OpContext& context, const LinearParams& params) {
  using namespace w4a4;
  if (ComposesActivation(params))
    return LinearThenActivation(context, params, LinearW4a4, ApplyActivation);
  const CudaWeight& weight = AsCuda(*params.weight);
  const int64_t k = weight.k();
  NIBBLE_CHECK(weight.input_scale() > 0.0f, "W4A4 of a weight without input_scale");
  NIBBLE_CHECK(LinearW4a4Workspace(params.m, k) <= context.workspace_bytes,
               "W4A4 linear of {} tokens: workspace of {} bytes", params.m,
               context.workspace_bytes);
  for (int64_t token = 0; token < params.m; token += kTokensAtOnce) {
    const int64_t m = std::min(kTokensAtOnce, params.m - token);
    QuantizeParams rows = {.x = params.x + token * params.x_stride,
                           .x_stride = params.x_stride,
                           .m = m,
                           .k = k,
                           .column_order = weight.column_order(),
                           .input_multiplier = weight.input_multiplier(),
                           .inverse_scale = 1.0f / weight.input_scale()};
    std::byte* quantized = context.workspace;
    if (params.norm.weight != nullptr) {
      auto* const normed = reinterpret_cast<uint16_t*>(context.workspace);
      quantized += NormedBytes(m, k);
      NormRows(context, params.norm, rows.x, rows.x_stride, m, k, normed);
      rows.x = normed;
      rows.x_stride = k;
    }
    QuantizeTokens(rows, quantized, context.stream);
    const int64_t first = token * params.y_stride;
    const Args args = {.weight = weight.tiles(),
                       .tokens = quantized,
                       .groups = static_cast<int>(Groups(m)),
                       .end = {{.row_scales = weight.tiles().row_scales,
                                .bias = params.bias,
                                .input_scale = weight.input_scale(),
                                .n = static_cast<int>(weight.n()),
                                .y = params.y == nullptr ? nullptr : params.y + first,
                                .y_f32 = params.y_f32 == nullptr ? nullptr : params.y_f32 + first,
                                .y_stride = params.y_stride,
                                .add = params.add,
                                .m = static_cast<int>(m)},
                               params.activation != nullptr,
                               ActivationOf(params)}};
    LaunchPdl(LinearKernel, dim3(Blocks(m, kTokens), Blocks(weight.n(), kRows)), kThreads,
              TileShape<kTokens>::kRingBytes, StreamOf(context), args);
  }
}

}  // namespace nibble::kernels::cuda
