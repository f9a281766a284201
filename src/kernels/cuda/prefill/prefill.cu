#include "kernels/cuda/prefill/prefill.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/prefill/tile_product.cuh"
#include "kernels/cuda/prefill/turns.h"

namespace nibble::kernels::cuda {

// Tiles of tokens that are walked through all rows before the next ones: what of x stays in L2.
constexpr int kBandTiles = 16;

struct DenseProblem {
  static constexpr bool kGathers = false;

  PrefillParams p;
  int tile_rows = 0;
  int tile_tokens = 0;
  int row_blocks = 0;
  int token_blocks = 0;

  __device__ __forceinline__ const WeightTiles& like() const { return p.weight; }
  __device__ __forceinline__ const PreparedTokens& tokens() const { return p.x; }
  __device__ __forceinline__ TileOutput output() const {
    return {p.y, p.y_f32, p.y_stride, p.weight.n, p.add};
  }
  __host__ __device__ __forceinline__ int count() const { return row_blocks * token_blocks; }
  __device__ __forceinline__ TileWork At(int index) const {
    const int band = index / (kBandTiles * row_blocks);
    const int width = min(kBandTiles, token_blocks - band * kBandTiles);
    const int within = index - band * kBandTiles * row_blocks;
    const int first = (band * kBandTiles + within % width) * tile_tokens;
    return {p.weight.data, p.weight.row_scales,
            p.bias,        within / width * (tile_rows / kTileRows),
            first,         min(tile_tokens, static_cast<int>(p.m) - first)};
  }
};

namespace {

// Bounds the workspace.
constexpr int64_t kTokensAtOnce = 2048;

int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

template <typename Shape>
void LaunchShape(const PrefillParams& p, void* stream) {
  const DenseProblem problem = {.p = p,
                                .tile_rows = Shape::kRows,
                                .tile_tokens = Shape::kTokens,
                                .row_blocks = CeilDiv(p.weight.row_tiles, Shape::kRowTiles),
                                .token_blocks = CeilDiv(p.m, Shape::kTokens)};
  LaunchPdl(TilesKernel<Shape, DenseProblem>,
            std::min(problem.count(), CurrentDevice().multiprocessors), Shape::kThreads,
            Shape::kAllocatedBytes, static_cast<cudaStream_t>(stream), problem);
}

// Rows, tokens and measured microseconds per k-tile on one multiprocessor of an H100: decoding
// costs as much for few tokens as for many.
struct ShapeCost {
  int rows;
  int tokens;
  double microseconds;
};

constexpr ShapeCost kShapes[] = {
    {128, 128, 0.39}, {128, 64, 0.285}, {64, 128, 0.285}, {128, 32, 0.235}};

double Microseconds(const ShapeCost& shape, const WeightTiles& weight, int64_t m) {
  const int64_t tiles = int64_t{CeilDiv(weight.n, shape.rows)} * CeilDiv(m, shape.tokens);
  return CeilDiv(tiles, CurrentDevice().multiprocessors) * shape.microseconds * weight.k_tiles;
}

int BestShape(const WeightTiles& weight, int64_t m) {
  int best = 0;
  for (int i = 1; i < static_cast<int>(std::size(kShapes)); ++i)
    if (Microseconds(kShapes[i], weight, m) < Microseconds(kShapes[best], weight, m)) best = i;
  return best;
}

template <TileFormat kFormat>
void LaunchFormat(const PrefillParams& p, void* stream, int shape) {
  switch (shape) {
    case 0:
      return LaunchShape<TileShape<kFormat, 2, 1, 128>>(p, stream);
    case 1:
      return LaunchShape<TileShape<kFormat, 2, 1, 64>>(p, stream);
    case 2:
      return LaunchShape<TileShape<kFormat, 1, 2, 64>>(p, stream);
    default:
      return LaunchShape<TileShape<kFormat, 2, 1, 32>>(p, stream);
  }
}

}  // namespace

bool HasPrefill(TileFormat format) { return HasWgmma(CurrentCapability()) && !HasGroups(format); }

size_t PrefillWorkspace(int64_t max_m, int64_t max_k) {
  if (!HasWgmma(CurrentCapability())) return 0;
  return static_cast<size_t>(PreparedBytes(std::min(max_m, kTokensAtOnce), max_k)) + kPieceBytes;
}

void LaunchPrefill(const PrefillParams& p, void* stream, int shape) {
  if (shape < 0) shape = BestShape(p.weight, p.m);
  switch (p.weight.format) {
    case TileFormat::kNvfp4:
      return LaunchFormat<TileFormat::kNvfp4>(p, stream, shape);
    case TileFormat::kMxfp4:
      return LaunchFormat<TileFormat::kMxfp4>(p, stream, shape);
    case TileFormat::kBf16:
      return LaunchFormat<TileFormat::kBf16>(p, stream, shape);
    case TileFormat::kFp8:
      return LaunchFormat<TileFormat::kFp8>(p, stream, shape);
    case TileFormat::kMxfp8:
      return LaunchFormat<TileFormat::kMxfp8>(p, stream, shape);
    default:
      NIBBLE_CHECK(false, "prefill: a format without kernels");
  }
}

void Prefill(const OpContext& context, const LinearParams& params) {
  const CudaWeight& weight = AsCuda(*params.weight);
  NIBBLE_CHECK(PrefillWorkspace(params.m, weight.k()) <= context.workspace_bytes,
               "linear of {} tokens: workspace of {} bytes", params.m, context.workspace_bytes);
  const auto address = reinterpret_cast<uintptr_t>(context.workspace);
  std::byte* const aligned =
      context.workspace + (kPieceBytes - address % kPieceBytes) % kPieceBytes;
  for (int64_t token = 0; token < params.m; token += kTokensAtOnce) {
    const int64_t m = std::min(kTokensAtOnce, params.m - token);
    const PreparedTokens x = PrepareTokens({.x = params.x + token * params.x_stride,
                                            .x_stride = params.x_stride,
                                            .m = m,
                                            .k = weight.k(),
                                            .column_order = weight.column_order(),
                                            .input_multiplier = weight.input_multiplier(),
                                            .norm = params.norm},
                                           aligned, context.stream);
    const int64_t first = token * params.y_stride;
    const PrefillParams product = {
        .weight = weight.tiles(),
        .x = x,
        .bias = params.bias,
        .y = params.y == nullptr ? nullptr : params.y + first,
        .y_f32 = params.y_f32 == nullptr ? nullptr : params.y_f32 + first,
        .y_stride = params.y_stride,
        .add = params.add,
        .m = m};
    if (m <= kMaxTurnTokens) {
      LaunchTurns(product, context.stream);
    } else {
      LaunchPrefill(product, context.stream);
    }
  }
}

}  // namespace nibble::kernels::cuda
