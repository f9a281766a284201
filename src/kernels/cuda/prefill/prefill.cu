#include "kernels/cuda/prefill/prefill.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/prefill/tile_product.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

// Tokens that are walked through all rows before the next: what of x stays in L2.
constexpr int kBandTiles = 16;

// Tiles of a product, in the order in which clusters take them.
struct Tiling {
  int row_blocks = 0;  // of a cluster's rows
  int token_blocks = 0;

  __device__ __forceinline__ int count() const { return row_blocks * token_blocks; }
  struct Tile {
    int row_block;
    int token_block;
  };
  __device__ __forceinline__ Tile At(int index) const {
    const int band = index / (kBandTiles * row_blocks);
    const int width = min(kBandTiles, token_blocks - band * kBandTiles);
    const int within = index - band * kBandTiles * row_blocks;
    return {within / width, band * kBandTiles + within % width};
  }
};

#ifdef NIBBLE_HAVE_WGMMA

struct RowEnds {
  float scale;
  float bias;
};

// Without a bias -0, which changes nothing.
__device__ __forceinline__ RowEnds EndsOf(const PrefillParams& p, int row) {
  if (row >= p.weight.n) return {0.0f, 0.0f};
  return {p.weight.row_scales[row], p.bias != nullptr ? p.bias[row] : -0.0f};
}

// From the accumulators of a warpgroup to y; the tokens of the tile go through shared memory, so
// that neighbouring rows of W are stored together.
template <int kN>
__device__ __forceinline__ void Store(const PrefillParams& p, const float (&total)[kN / 2],
                                      int first_row, int64_t first_token, std::byte* staging,
                                      int barrier) {
  const int thread = threadIdx.x % kWarpgroupThreads;
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int g = lane / 4;
  const int q = lane % 4;
  const int row = first_row + warp * kTileRows + g;
  const RowEnds low = EndsOf(p, row);
  const RowEnds high = EndsOf(p, row + 8);
  const auto finish = [](float sum, RowEnds ends) { return sum * ends.scale + ends.bias; };

  if (p.y_f32 != nullptr) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      const int64_t token = first_token + i / 4 * 8 + 2 * q + i % 2;
      const int n = row + i % 4 / 2 * 8;
      if (token < p.m && n < p.weight.n)
        p.y_f32[token * p.y_stride + n] = finish(total[i], i % 4 < 2 ? low : high);
    }
    return;
  }
  // (kN tokens, 64 rows) BF16 in the swizzle of tokens.h.
#pragma unroll
  for (int i = 0; i < kN / 8; i += 2) {
    uint32_t values[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float* pair = total + 4 * (i + m / 2) + 2 * (m % 2);
      const RowEnds ends = m % 2 == 0 ? low : high;
      values[m] = ptx::PackBf16(finish(pair[0], ends), finish(pair[1], ends));
    }
    const int token = 8 * (i + lane / 16) + lane % 8;
    const int chunk = 2 * warp + lane / 8 % 2;
    ptx::StoreMatricesTransposed(staging + token * 128 + (chunk ^ token % 8) * 16, values);
  }
  ptx::SyncThreads(barrier, kWarpgroupThreads);
  const int chunk = thread % 8;
  const int n = first_row + 8 * chunk;
  const bool whole =
      p.y_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0 && n + 8 <= p.weight.n;
  for (int t = thread / 8; t < kN; t += kWarpgroupThreads / 8) {
    const int64_t token = first_token + t;
    if (token >= p.m) break;
    const uint4 values = *reinterpret_cast<const uint4*>(staging + t * 128 + (chunk ^ t % 8) * 16);
    uint16_t* y = p.y + token * p.y_stride + n;
    if (whole) {
      *reinterpret_cast<uint4*>(y) = values;
    } else {
      const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (n + i < p.weight.n) y[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
    }
  }
  ptx::SyncThreads(barrier, kWarpgroupThreads);  // before the next tile's values
}

#endif  // NIBBLE_HAVE_WGMMA

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    PrefillKernel(const __grid_constant__ PrefillParams p, Tiling tiling) {
#ifdef NIBBLE_HAVE_WGMMA
  extern __shared__ std::byte memory[];
  const TileStorage<Shape> storage(memory);
  const int rank = Shape::kCluster > 1 ? ptx::ClusterRank() : 0;
  const int cluster = blockIdx.x / Shape::kCluster;
  const int clusters = gridDim.x / Shape::kCluster;
  const int warpgroup = threadIdx.x / kWarpgroupThreads;
  storage.Init();
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  if (warpgroup == Shape::kConsumers) {
    ptx::GiveRegisters<Shape::kProducerRegisters>();
    if (threadIdx.x % kWarpgroupThreads == 0) {
      TokenProducer<Shape> producer{storage, rank};
      for (int i = cluster; i < tiling.count(); i += clusters) {
        const int group = tiling.At(i).token_block * Shape::kGroups;
        producer.Run(p.x, group, min(Shape::kGroups, p.x.groups - group), p.weight.k_tiles);
      }
    }
  } else {
    ptx::TakeRegisters<Shape::kConsumerRegisters>();
    const int row_part = warpgroup % Shape::kParts;
    const int token_part = warpgroup / Shape::kParts;
    const auto row_tile_of = [&](int index) {
      return (tiling.At(index).row_block * Shape::kCluster + rank) * Shape::kRowTiles +
             row_part * (kWarpgroupRows / kTileRows);
    };
    const auto row_tiles = [&](int work) -> const std::byte* {
      const int index = cluster + work * clusters;
      if (index >= tiling.count()) return nullptr;
      // Past the end whatever is there: not stored.
      const int tile = row_tile_of(index) + threadIdx.x % kWarpgroupThreads / 32;
      return p.weight.data + min(tile, p.weight.row_tiles - 1) * p.weight.row_tile_bytes;
    };
    WeightRing<Shape, decltype(row_tiles)> weights(storage, row_tiles, p.weight.k_tiles);
    TileConsumer<Shape, decltype(row_tiles)> consumer(storage, weights, token_part);
    for (int i = cluster; i < tiling.count(); i += clusters) {
      float total[Shape::kN / 2];
      consumer.Run(p.weight.k_tiles, total);
      Store<Shape::kN>(p, total, row_tile_of(i) * kTileRows,
                       int64_t{tiling.At(i).token_block} * Shape::kTokens + token_part * Shape::kN,
                       storage.outputs + warpgroup * (Shape::kN * kWarpgroupRows * 2),
                       warpgroup + 1);
    }
  }
  if constexpr (Shape::kCluster > 1) ptx::ClusterSync();  // others may still copy or arrive here
#endif
}

int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

template <typename Shape>
void LaunchShape(const PrefillParams& p, void* stream) {
  const Tiling tiling = {
      .row_blocks = CeilDiv(p.weight.row_tiles, Shape::kRowTiles * Shape::kCluster),
      .token_blocks = CeilDiv(p.x.groups, Shape::kGroups)};
  const int clusters = std::min(tiling.row_blocks * tiling.token_blocks,
                                CurrentDevice().multiprocessors / Shape::kCluster);
  LaunchPdlCluster(PrefillKernel<Shape>, clusters * Shape::kCluster, Shape::kThreads,
                   Shape::kCluster, Shape::kAllocatedBytes, static_cast<cudaStream_t>(stream), p,
                   tiling);
}

template <TileFormat kFormat>
void LaunchFormat(const PrefillParams& p, void* stream, int shape) {
  switch (shape) {
    case 0:
      return LaunchShape<TileShape<kFormat, 2, 1, 128, 1>>(p, stream);
    default:
      return LaunchShape<TileShape<kFormat, 2, 1, 128, 2>>(p, stream);
  }
}

}  // namespace

bool HasPrefill(TileFormat format) { return CurrentDevice().major == 9 && !HasGroups(format); }

size_t PrefillWorkspace(int64_t max_m, int64_t max_k) {
  if (CurrentDevice().major != 9) return 0;
  return static_cast<size_t>(PreparedBytes(max_m, max_k)) + kPieceBytes;
}

void LaunchPrefill(const PrefillParams& p, void* stream, int shape) {
  if (shape < 0) shape = 0;
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
