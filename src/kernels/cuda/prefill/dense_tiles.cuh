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
  __device__ __forceinline__ DenseOutput output() const { return DenseOutputOf(p, p.weight.n); }
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
            Shape::kAllocatedBytes + Shape::kRawBytes, static_cast<cudaStream_t>(stream), problem);
}

// f.template operator()<Shape>() of a shape, an index of kShapes (prefill.cu).
template <TileFormat kFormat, typename F>
auto WithDenseShape(int shape, const F& f) {
  switch (shape) {
    case 0:
      break;
    case 1:
      return f.template operator()<TileShape<kFormat, 2, 1, 64>>();
    case 2:
      return f.template operator()<TileShape<kFormat, 1, 2, 64>>();
    case 3:
      return f.template operator()<TileShape<kFormat, 2, 1, 32>>();
    default:
      if constexpr (!HasGroups(kFormat))
        return f.template operator()<TileShape<kFormat, 2, 1, 176>>();
  }
  return f.template operator()<TileShape<kFormat, 2, 1, 128>>();
}

template <TileFormat kFormat>
void LaunchDense(const PrefillParams& p, void* stream, int shape) {
  WithDenseShape<kFormat>(shape, [&]<typename Shape>() { LaunchDenseShape<Shape>(p, stream); });
}

// Tokens of the bands by which the tiles lay out the rest of x; 0: they do not.
template <TileFormat kFormat>
int RestBandTokensOf(int shape) {
  return WithDenseShape<kFormat>(shape, [&]<typename Shape>() {
    return Shape::kRawRows > 0 ? BandTiles(Shape::kTokens) * Shape::kTokens : 0;
  });
}

// Weights with scales by column groups.
void LaunchDenseGroups(const PrefillParams& p, void* stream, int shape);

}  // namespace nibble::kernels::cuda
