#include "kernels/cuda/prefill/prefill.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/prefill/tile_product.cuh"

namespace nibble::kernels::cuda {
namespace {

// Tokens that are walked through all rows before the next: what of x stays in L2.
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
    return {p.y, p.y_f32, p.y_stride, p.weight.n};
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

// Of 128 x 128, 128 x 64 and 64 x 128 (rows, tokens) the one that keeps the tensor cores busiest.
// Their times per k-tile, about: the small ones decode as much or as often for half the product.
int BestShape(const PrefillParams& p) {
  struct Candidate {
    int rows;
    int tokens;
    double time;
  };
  constexpr Candidate kShapes[] = {{128, 128, 1.0}, {128, 64, 0.7}, {64, 128, 0.7}};
  int best = 0;
  double best_time = 0.0;
  for (int i = 0; i < 3; ++i) {
    const int tiles = CeilDiv(p.weight.n, kShapes[i].rows) * CeilDiv(p.m, kShapes[i].tokens);
    const double time = CeilDiv(tiles, CurrentDevice().multiprocessors) * kShapes[i].time;
    if (i == 0 || time < best_time) {
      best = i;
      best_time = time;
    }
  }
  return best;
}

template <TileFormat kFormat>
void LaunchFormat(const PrefillParams& p, void* stream, int shape) {
  switch (shape) {
    case 0:
      return LaunchShape<TileShape<kFormat, 2, 1, 128>>(p, stream);
    case 1:
      return LaunchShape<TileShape<kFormat, 2, 1, 64>>(p, stream);
    default:
      return LaunchShape<TileShape<kFormat, 1, 2, 64>>(p, stream);
  }
}

}  // namespace

bool HasPrefill(TileFormat format) { return CurrentDevice().major == 9 && !HasGroups(format); }

size_t PrefillWorkspace(int64_t max_m, int64_t max_k) {
  if (CurrentDevice().major != 9) return 0;
  return static_cast<size_t>(PreparedBytes(max_m, max_k)) + kPieceBytes;
}

void LaunchPrefill(const PrefillParams& p, void* stream, int shape) {
  if (shape < 0) shape = BestShape(p);
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
  const PreparedTokens x = PrepareTokens({.x = params.x,
                                          .x_stride = params.x_stride,
                                          .m = params.m,
                                          .k = weight.k(),
                                          .column_order = weight.column_order(),
                                          .input_multiplier = weight.input_multiplier()},
                                         aligned, context.stream);
  LaunchPrefill({.weight = weight.tiles(),
                 .x = x,
                 .bias = params.bias,
                 .y = params.y,
                 .y_f32 = params.y_f32,
                 .y_stride = params.y_stride,
                 .m = params.m},
                context.stream);
}

}  // namespace nibble::kernels::cuda
