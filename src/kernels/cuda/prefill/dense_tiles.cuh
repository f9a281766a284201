// Launches of tile_product.cuh over a dense weight.
#pragma once

#include <algorithm>

#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill/dense_cut.h"
#include "kernels/cuda/prefill/prefill.h"
#include "kernels/cuda/prefill/tile_product.cuh"

namespace nibble::kernels::cuda {

struct DenseProblem {
  static constexpr bool kGathers = false;

  PrefillParams p;
  DenseCut cut;

  __device__ __forceinline__ const WeightTiles& like() const { return p.weight; }
  __device__ __forceinline__ const PreparedTokens& tokens() const { return p.x; }
  __device__ __forceinline__ TileOutput output() const {
    return {p.y, p.y_f32, p.y_stride, p.weight.n, p.add};
  }
  __host__ __device__ __forceinline__ int count() const { return cut.count(); }
  __device__ __forceinline__ TileWork At(int index) const {
    const DenseTile tile = cut.At(index, p.m);
    return {p.weight.data, p.weight.row_scales, p.bias,
            tile.row_tile, tile.first_token,    tile.tokens};
  }
};

// Into tiles of a shape.
template <typename Shape>
DenseProblem CutDense(const PrefillParams& p) {
  return {p, DenseCut(p.weight, p.m, Shape::kRows, Shape::kTokens)};
}

template <typename Shape>
void LaunchDenseShape(const PrefillParams& p, void* stream) {
  const DenseProblem problem = CutDense<Shape>(p);
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
