#include "kernels/cuda/prefill/turns.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill/turns.cuh"

namespace nibble::kernels::cuda {
namespace {

template <typename Shape>
void LaunchShape(const PrefillParams& p, void* stream) {
  const int groups = (p.weight.row_tiles + 3) / 4;
  LaunchPdl(TurnsKernel<Shape>, dim3(std::min(groups, CurrentDevice().multiprocessors)),
            dim3(Shape::kThreads), Shape::kAllocatedBytes, static_cast<cudaStream_t>(stream), p);
}

// Warpgroups as shared memory allows.
template <TileFormat kFormat>
void LaunchFormat(const PrefillParams& p, void* stream) {
  constexpr bool kWide = CodeBytes(kFormat) > 1024;
  if (p.m <= 32) return LaunchShape<TurnShape<kFormat, 32, kWide ? 2 : 4>>(p, stream);
  LaunchShape<TurnShape<kFormat, 64, kWide ? 2 : 3>>(p, stream);
}

}  // namespace

double TurnMicroseconds(const WeightTiles& weight, int64_t m) {
  constexpr double kLaunches = 4.0;
  const int groups = (weight.row_tiles + 3) / 4;
  const int processors = CurrentDevice().multiprocessors;
  const int rounds = (groups + processors - 1) / processors;
  return kLaunches + rounds * weight.slices() * (m <= 32 ? 0.56 : 0.75);
}

void LaunchTurns(const PrefillParams& p, void* stream) {
  switch (p.weight.format) {
    case TileFormat::kNvfp4:
      return LaunchFormat<TileFormat::kNvfp4>(p, stream);
    case TileFormat::kMxfp4:
      return LaunchFormat<TileFormat::kMxfp4>(p, stream);
    case TileFormat::kBf16:
      return LaunchFormat<TileFormat::kBf16>(p, stream);
    case TileFormat::kFp8:
      return LaunchFormat<TileFormat::kFp8>(p, stream);
    case TileFormat::kMxfp8:
      return LaunchFormat<TileFormat::kMxfp8>(p, stream);
    default:
      NIBBLE_CHECK(false, "turns: a format without kernels");
  }
}

}  // namespace nibble::kernels::cuda
