// Between a token's kernels stand chains of dependent steps, not bytes, and code that runs once
// costs by its length: so what does not depend on x is done before the wait, and there is nothing
// here of rounds, chunks or tokens.
//
// A CTA takes a contiguous share of the row tiles; warp w takes slice w mod slices of one or two of
// them, so that it needs no more of x than that slice, which it brings to shared memory, and norms,
// for itself. Sums of slices meet in shared memory, where a thread per row adds them up.
#include <algorithm>
#include <bit>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/decode_kernels.h"
#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/linear/one_token.h"
#include "kernels/cuda/norm/normalize.cuh"
#include "kernels/cuda/norm/sum_of_runs.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/shared_memory_split.h"

namespace nibble::kernels::cuda {
namespace {

using decode::kThreads;
using decode::kWarps;

constexpr int kMostUnits = 2;    // of a warp: (row tile, slice)
constexpr int kLeastSlices = 8;  // of K; at most one per warp

struct Args {
  const std::byte* data = nullptr;
  const uint16_t* x = nullptr;
  const float* norm_weight = nullptr;
  const float* row_scales = nullptr;
  const float* bias = nullptr;  // or null
  uint16_t* y = nullptr;
  int32_t row_tile_bytes = 0;
  int32_t slice_shift = 0;  // log2 of the slices
  int32_t share = 0;        // row tiles of a CTA
  int32_t larger = 0;       // CTAs with one more
  int32_t n = 0;
  float inverse_d = 0.0f;
  float eps = 0.0f;
  NormStyle style = {};
  bool add = false;  // to y
};

constexpr int SliceBytes(TileFormat format) {
  return kSliceTiles * CodeBytes(format) + ScaleBytes(format, 0);
}

template <TileFormat kFormat, int kUnits, bool kNorms>
__global__ void __launch_bounds__(kThreads, 2) OneTokenKernel(const __grid_constant__ Args p) {
  constexpr int kPerTile = decode::VectorsPerTile(kFormat);
  constexpr int kSliceBytes = SliceBytes(kFormat);
  extern __shared__ uint4 memory[];  // (units) slices
  __shared__ alignas(16) uint16_t x_slices[kWarps][kSliceColumns];
  __shared__ float partials[kUnits * kWarps][kTileRows];
  [[maybe_unused]] __shared__ float squares[kWarps];

  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int block = static_cast<int>(blockIdx.x);
  const int first_tile = block * p.share + min(block, p.larger);
  const int tiles = p.share + (block < p.larger ? 1 : 0);
  const int slices = 1 << p.slice_shift;
  const int slice = warp & (slices - 1);
  const int units = tiles << p.slice_shift;
  std::byte* const ring = reinterpret_cast<std::byte*>(memory) + warp * kSliceBytes;
  bool has[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int unit = warp + u * kWarps;
    has[u] = unit < units;
    if (!has[u]) continue;
    const int tile = first_tile + (unit >> p.slice_shift);
    const std::byte* const from =
        p.data + int64_t{tile} * p.row_tile_bytes + (slice * kSliceBytes + lane * 16);
    const uint32_t to = ptx::SharedAddress(ring) + u * kWarps * kSliceBytes + lane * 16;
#pragma unroll
    for (int v = 0; v < kSliceTiles * kPerTile; ++v)
      ptx::CopyAsync16To(to + v * 512, from + v * 512);
    constexpr int kCodes = kSliceTiles * kPerTile * 512;
    if (lane * 16 < ScaleBytes(kFormat, 0)) ptx::CopyAsync16To(to + kCodes, from + kCodes);
  }
  ptx::CommitCopies();
  ptx::LaunchSuccessor();

  // The row that this thread finishes.
  const int row = first_tile * kTileRows + static_cast<int>(threadIdx.x);
  const bool finishes = static_cast<int>(threadIdx.x) < tiles * kTileRows && row < p.n;
  float scale = 0.0f, bias = 0.0f, weight[kVector] = {};
  if (finishes) {
    scale = p.row_scales[row];
    if (p.bias != nullptr) bias = p.bias[row];
  }
  const int column = slice * kSliceColumns + lane * kVector;
  if constexpr (kNorms) LoadF32x8(p.norm_weight + column, kVector, true, weight);
  const uint16_t* x = p.x + column;
  uint16_t* y = p.y + row;
  bool add = p.add && finishes, has_bias = p.bias != nullptr;
  float eps = p.eps, inverse_d = p.inverse_d;
  // Parameters come from memory when they are first read: not behind the wait.
  asm volatile("" : "+l"(x), "+l"(y), "+f"(eps), "+f"(inverse_d));

  uint32_t a[kUnits][4][4] = {};
  const auto decode_tile = [&](int t) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!has[u]) continue;
      const std::byte* const stage = ring + u * kWarps * kSliceBytes;
      uint4 codes[kPerTile];
#pragma unroll
      for (int v = 0; v < kPerTile; ++v)
        codes[v] = *reinterpret_cast<const uint4*>(stage + (t * kPerTile + v) * 512 + lane * 16);
      LaneScales<kFormat>(stage + kSliceTiles * kPerTile * 512, 0, lane).Decode(codes, t, a[u]);
    }
  };
  // The first k-tiles are decoded before x is there.
  ptx::WaitForCopies<0>();
  __syncwarp();
  decode_tile(0);
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
#pragma unroll
    for (int atom = 0; atom < 4; ++atom)
#pragma unroll
      for (int r = 0; r < 4; ++r) asm volatile("" : "+r"(a[u][atom][r]));

  ptx::WaitForPredecessor();
  uint4 vector = __ldcg(reinterpret_cast<const uint4*>(x));
  uint16_t old = 0;
  if (add) old = __ldcg(y);
  if constexpr (kNorms) {
    const float own = WarpSum(AddSquares(vector, 0.0f));
    if (lane == 0) squares[warp] = warp < slices ? own : 0.0f;
    __syncthreads();
    vector = NormVector(vector, InverseRoot(SumOfRuns<kWarps>(squares, lane), inverse_d, eps),
                        weight, p.style);
  }
  *reinterpret_cast<uint4*>(x_slices[warp] + lane * kVector) = vector;
  __syncwarp();

  float sums[kUnits][4] = {};
  const auto* const x_lane = reinterpret_cast<const uint4*>(x_slices[warp] + lane % 4 * 16);
#pragma unroll
  for (int t = 0; t < kSliceTiles; ++t) {
    const uint4 low = x_lane[t * 8], high = x_lane[t * 8 + 1];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!has[u]) continue;
      ptx::MmaBf16(sums[u], a[u][0], low.x, low.y);
      ptx::MmaBf16(sums[u], a[u][1], low.z, low.w);
      ptx::MmaBf16(sums[u], a[u][2], high.x, high.y);
      ptx::MmaBf16(sums[u], a[u][3], high.z, high.w);
    }
    if (t + 1 < kSliceTiles) decode_tile(t + 1);
  }
  // All columns of an atom are the token.
  if (lane % 4 == 0) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      partials[warp + u * kWarps][lane / 4] = sums[u][0];
      partials[warp + u * kWarps][lane / 4 + 8] = sums[u][2];
    }
  }
  __syncthreads();
  if (!finishes) return;
  const float* partial = &partials[static_cast<int>(threadIdx.x) / kTileRows << p.slice_shift]
                                  [threadIdx.x % kTileRows];
  float sum = 0.0f;
#pragma unroll 1
  for (int first = 0; first < slices; first += kLeastSlices)
#pragma unroll
    for (int s = 0; s < kLeastSlices; ++s) sum += partial[(first + s) * kTileRows];
  float result = sum * scale;
  if (has_bias) result += bias;
  if (add) result = ptx::RoundBf16(result) + ptx::FirstBf16(old);
  *y = static_cast<uint16_t>(ptx::PackBf16(result, 0.0f));
}

template <TileFormat kFormat, int kUnits>
const void* KernelOf(bool norms) {
  return norms ? reinterpret_cast<const void*>(&OneTokenKernel<kFormat, kUnits, true>)
               : reinterpret_cast<const void*>(&OneTokenKernel<kFormat, kUnits, false>);
}

// Null for what has no instance.
const void* KernelOf(TileFormat format, int units, bool norms) {
  switch (format) {
    case TileFormat::kNvfp4:
      return units == 1 ? KernelOf<TileFormat::kNvfp4, 1>(norms)
                        : KernelOf<TileFormat::kNvfp4, 2>(norms);
    case TileFormat::kMxfp4:
      return units == 1 ? KernelOf<TileFormat::kMxfp4, 1>(norms)
                        : KernelOf<TileFormat::kMxfp4, 2>(norms);
    case TileFormat::kFp8:
      return units == 1 ? KernelOf<TileFormat::kFp8, 1>(norms) : nullptr;
    case TileFormat::kMxfp8:
      return units == 1 ? KernelOf<TileFormat::kMxfp8, 1>(norms) : nullptr;
    default:
      return nullptr;
  }
}

struct Launch {
  const void* kernel = nullptr;
  int blocks = 0;
  int shared_bytes = 0;  // beside what is static
};

Launch PlanOf(const WeightTiles& weight, bool norms) {
  const int slices = weight.slices();
  if (weight.k % kSliceColumns != 0 || (slices != kLeastSlices && slices != kWarps)) return {};
  const int blocks = std::min(CurrentDevice().multiprocessors, weight.row_tiles);
  const int units = (weight.row_tiles + blocks - 1) / blocks * slices;
  if (units > kMostUnits * kWarps) return {};
  return {KernelOf(weight.format, units <= kWarps ? 1 : 2, norms), blocks,
          units * weight.slice_stride()};
}

// Two launches share a multiprocessor.
bool Fits(const Launch& launch) {
  constexpr int kStatic = kWarps * kSliceColumns * 2 + (kMostUnits * kTileRows + 1) * kWarps * 4;
  return launch.kernel != nullptr &&
         launch.shared_bytes + kStatic + kReservedPerCta <=
             std::min(CurrentDevice().shared_memory_per_block, kSplitOfOneToken / 2);
}

}  // namespace

bool OneTokenTakes(const DecodeArgs& args) {
  return args.m == 1 && args.y != nullptr && !args.activates &&
         args.weight.row_tile_bytes == args.weight.slices() * args.weight.slice_stride() &&
         Fits(PlanOf(args.weight, args.norm.weight != nullptr));
}

void LaunchOneToken(const DecodeArgs& args, void* stream) {
  const WeightTiles& weight = args.weight;
  const Launch launch = PlanOf(weight, args.norm.weight != nullptr);
  AskForSplit(launch.kernel, kSplitOfOneToken);
  cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       launch.shared_bytes);
  const auto kernel = reinterpret_cast<void (*)(Args)>(const_cast<void*>(launch.kernel));
  LaunchPdl(kernel, dim3(launch.blocks), dim3(kThreads), launch.shared_bytes,
            static_cast<cudaStream_t>(stream),
            Args{.data = weight.data,
                 .x = args.x,
                 .norm_weight = args.norm.weight,
                 .row_scales = weight.row_scales,
                 .bias = args.bias,
                 .y = args.y,
                 .row_tile_bytes = static_cast<int32_t>(weight.row_tile_bytes),
                 .slice_shift = std::countr_zero(static_cast<unsigned>(weight.slices())),
                 .share = weight.row_tiles / launch.blocks,
                 .larger = weight.row_tiles % launch.blocks,
                 .n = weight.n,
                 .inverse_d = 1.0f / static_cast<float>(weight.k),
                 .eps = args.norm.eps,
                 .style = args.norm.style,
                 .add = args.add});
}

}  // namespace nibble::kernels::cuda
