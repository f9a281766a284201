// Launches of tile_product.cuh over a dense weight.
#pragma once

#include <algorithm>

#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill/prefill.h"
#include "kernels/cuda/prefill/tile_product.cuh"

namespace nibble::kernels::cuda {

// Tokens that are walked through all rows before the next ones: what of x stays in L2.
constexpr int kBandTokens = 2112;

struct DenseProblem {
  static constexpr bool kGathers = false;

  PrefillParams p;
  int tile_rows = 0;
  int tile_tokens = 0;
  int band_tiles = 0;
  int row_blocks = 0;
  int token_blocks = 0;

  // Into tiles of a shape: before everything else.
  template <typename Shape>
  void Cut() {
    tile_rows = Shape::kRows;
    tile_tokens = Shape::kTokens;
    band_tiles = kBandTokens / Shape::kTokens;
    row_blocks = (p.weight.row_tiles + Shape::kRowTiles - 1) / Shape::kRowTiles;
    token_blocks = (static_cast<int>(p.m) + Shape::kTokens - 1) / Shape::kTokens;
  }

  __device__ __forceinline__ const WeightTiles& like() const { return p.weight; }
  __device__ __forceinline__ const PreparedTokens& tokens() const { return p.x; }
  __device__ __forceinline__ TileOutput output() const {
    return {p.y, p.y_f32, p.y_stride, p.weight.n, p.add};
  }
  __host__ __device__ __forceinline__ int count() const { return row_blocks * token_blocks; }
  __device__ __forceinline__ TileWork At(int index) const {
    const int band = index / (band_tiles * row_blocks);
    const int width = min(band_tiles, token_blocks - band * band_tiles);
    const int within = index - band * band_tiles * row_blocks;
    const int first = (band * band_tiles + within % width) * tile_tokens;
    return {p.weight.data, p.weight.row_scales,
            p.bias,        within / width * (tile_rows / kTileRows),
            first,         min(tile_tokens, static_cast<int>(p.m) - first)};
  }
};

template <typename Shape>
void LaunchDenseShape(const PrefillParams& p, void* stream) {
  DenseProblem problem = {.p = p};
  problem.Cut<Shape>();
  LaunchPdl(TilesKernel<Shape, DenseProblem>,
            std::min(problem.count(), CurrentDevice().multiprocessors), Shape::kThreads,
            Shape::kAllocatedBytes, static_cast<cudaStream_t>(stream), problem);
}

// shape: an index of kShapes (prefill.cu).
template <TileFormat kFormat>
void LaunchDense(const PrefillParams& p, void* stream, int shape) {
  switch (shape) {
    case 0:
      return LaunchDenseShape<TileShape<kFormat, 2, 1, 128>>(p, stream);
    case 1:
      return LaunchDenseShape<TileShape<kFormat, 2, 1, 64>>(p, stream);
    case 2:
      return LaunchDenseShape<TileShape<kFormat, 1, 2, 64>>(p, stream);
    case 3:
      return LaunchDenseShape<TileShape<kFormat, 2, 1, 32>>(p, stream);
    default:
      if constexpr (!HasGroups(kFormat))
        return LaunchDenseShape<TileShape<kFormat, 2, 1, 176>>(p, stream);
  }
}

// Weights with scales by column groups.
void LaunchDenseGroups(const PrefillParams& p, void* stream, int shape);

}  // namespace nibble::kernels::cuda
