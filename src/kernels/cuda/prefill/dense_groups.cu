#include "base/check.h"
#include "kernels/cuda/prefill/dense_tiles.cuh"

namespace nibble::kernels::cuda {

void LaunchDenseGroups(const PrefillParams& p, void* stream, int shape) {
  switch (p.weight.format) {
    case TileFormat::kFp8Groups:
      return LaunchDense<TileFormat::kFp8Groups>(p, stream, shape);
    case TileFormat::kInt4:
      return LaunchDense<TileFormat::kInt4>(p, stream, shape);
    case TileFormat::kInt8:
      return LaunchDense<TileFormat::kInt8>(p, stream, shape);
    default:
      NIBBLE_CHECK(false, "prefill: a format without groups");
  }
}

}  // namespace nibble::kernels::cuda
