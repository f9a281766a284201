// Between a token's kernels stand chains of dependent steps, not bytes, and code that runs once
// costs by its length: so what does not depend on x is done before the wait, and there is nothing
// here of rounds, chunks or tokens.
//
// A CTA takes a contiguous share of the row tiles; warp w takes slice w mod slices of up to three
// of them, so that it needs no more of x than that slice, which it brings to shared memory, and
// norms, for itself. Sums of slices meet in shared memory, where a thread per row adds them up.
//
// As two launches share a multiprocessor, shared memory holds two slices of a warp. Of three, the
// first moves on to registers as soon as it has come, and the third takes its place.
#include <algorithm>
#include <bit>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/decode_kernels.h"
#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/linear/one_token.h"
#include "kernels/cuda/linear/warp_stages.cuh"
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

constexpr int kStages = 2;       // slices of a warp in shared memory
constexpr int kMostUnits = 3;    // of a warp: (row tile, slice)
constexpr int kLeastSlices = 8;  // of K; at most one per warp

struct Args {
  const std::byte* data = nullptr;
  const uint16_t* x = nullptr;
  const float* norm_weight = nullptr;
  const float* row_scales = nullptr;
  const float* bias = nullptr;  // or null
  uint16_t* y = nullptr;
  // Row tiles from `tail_tile` on are those of a second weight, whose outputs are FP32.
  const std::byte* tail_data = nullptr;
  const float* tail_scales = nullptr;
  float* tail_y = nullptr;
  int32_t tail_tile = 0;
  int32_t tail_n = 0;
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

// A slice in a warp's registers: a lane's codes and scales.
template <TileFormat kFormat>
struct HeldSlice {
  static constexpr int kPerTile = decode::VectorsPerTile(kFormat);
  uint4 codes[kSliceTiles][kPerTile];
  LaneScales<kFormat> scales;

  __device__ __forceinline__ HeldSlice(const std::byte* stage, int lane)
      : scales(stage + kSliceTiles * kPerTile * 512, 0, lane) {
#pragma unroll
    for (int t = 0; t < kSliceTiles; ++t)
#pragma unroll
      for (int v = 0; v < kPerTile; ++v)
        codes[t][v] = *reinterpret_cast<const uint4*>(stage + (t * kPerTile + v) * 512 + lane * 16);
  }
};
struct NoSlice {
  __device__ __forceinline__ NoSlice(const std::byte*, int) {}
};

template <TileFormat kFormat, int kUnits, bool kNorms>
__global__ void __launch_bounds__(kThreads, 2) OneTokenKernel(const __grid_constant__ Args p) {
  constexpr int kPerTile = decode::VectorsPerTile(kFormat);
  constexpr int kSliceBytes = WholeSliceBytes(kFormat);
  // Then all warps have units for both stages, and there may be a second weight.
  constexpr bool kHolds = kUnits > kStages;
  // Whether x is asked for before the weights are waited for, which come after it as a rule.
  constexpr bool kAsksFirst = kHolds || (kUnits == 1 && !kNorms);
  extern __shared__ uint4 memory[];  // (units, at most kStages of a warp) slices
  __shared__ alignas(16) uint16_t x_slices[kWarps][kSliceColumns];
  __shared__ float partials[kHolds ? 1 : kUnits * kWarps][kTileRows];
  [[maybe_unused]] __shared__ float squares[kWarps];
  __shared__ uint64_t barriers[kWarps][kStages];

  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int block = static_cast<int>(blockIdx.x);
  const int first_tile = block * p.share + min(block, p.larger);
  const int tiles = p.share + (block < p.larger ? 1 : 0);
  const int slices = 1 << p.slice_shift;
  const int slice = warp & (slices - 1);
  const int units = tiles << p.slice_shift;
  std::byte* const ring = reinterpret_cast<std::byte*>(memory) + warp * kSliceBytes;
  const WarpStages<kFormat, kStages> weights(barriers[warp], lane);
  bool has[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) has[u] = warp + u * kWarps < units;
  const auto request = [&](int u) {
    if (has[u]) {
      const int tile = first_tile + ((warp + u * kWarps) >> p.slice_shift);
      const bool tail = kHolds && tile >= p.tail_tile;
      const std::byte* const from = (tail ? p.tail_data : p.data) +
                                    int64_t{tail ? tile - p.tail_tile : tile} * p.row_tile_bytes +
                                    slice * kSliceBytes;
      weights.Request(u % kStages, ptx::SharedAddress(ring) + u % kStages * kWarps * kSliceBytes,
                      from, kSliceTiles, lane);
    }
    ptx::CommitCopies();
  };
  // Of three slices one goes first: x, which waits for the predecessor's end, comes late when too
  // much has been asked for before it.
  constexpr int kFirst = kHolds ? 1 : std::min(kUnits, kStages);
#pragma unroll
  for (int u = 0; u < kFirst; ++u) request(u);
  ptx::LaunchSuccessor();

  // The row that this thread finishes.
  const int thread = static_cast<int>(threadIdx.x);
  const bool of_tail = kHolds && first_tile + thread / kTileRows >= p.tail_tile;
  const int row = (first_tile - (of_tail ? p.tail_tile : 0)) * kTileRows + thread;
  const bool finishes = thread < tiles * kTileRows && row < (of_tail ? p.tail_n : p.n);
  const bool has_bias = p.bias != nullptr && !of_tail;
  float scale = 0.0f, bias = 0.0f, weight[kVector] = {};
  if (finishes) {
    scale = (of_tail ? p.tail_scales : p.row_scales)[row];
    if (has_bias) bias = p.bias[row];
  }
  const int column = slice * kSliceColumns + lane * kVector;
  if constexpr (kNorms) LoadF32x8(p.norm_weight + column, kVector, true, weight);
  const uint16_t* x = p.x + column;
  void* y = of_tail ? static_cast<void*>(p.tail_y + row) : p.y + row;
  const bool add = p.add && finishes && !of_tail;
  float eps = p.eps, inverse_d = p.inverse_d;
  // Parameters come from memory when they are first read: not behind the wait.
  asm volatile("" : "+l"(x), "+l"(y), "+f"(eps), "+f"(inverse_d));

  uint32_t a[kUnits][4][4] = {};
  const auto decode_tile = [&](int u, int t) {
    if (!has[u]) return;
    const std::byte* const stage = ring + u % kStages * kWarps * kSliceBytes;
    uint4 codes[kPerTile];
#pragma unroll
    for (int v = 0; v < kPerTile; ++v)
      codes[v] = *reinterpret_cast<const uint4*>(stage + (t * kPerTile + v) * 512 + lane * 16);
    LaneScales<kFormat>(stage + kSliceTiles * kPerTile * 512, 0, lane).Decode(codes, t, a[u]);
  };
  uint4 vector;
  uint16_t old = 0;
  const auto ask_for_x = [&] {
    ptx::WaitForPredecessor();
    vector = __ldcg(reinterpret_cast<const uint4*>(x));
    if (add) old = __ldcg(static_cast<const uint16_t*>(y));
#pragma unroll
    for (int u = kFirst; u < kUnits && u < kStages; ++u) request(u);
  };
  if constexpr (kAsksFirst) ask_for_x();
  if constexpr (kHolds) {
    if (has[0]) weights.template Wait<kStages - 1>(0, 0);
  } else {
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
      if (has[u]) weights.template Wait<0>(u, 0);
  }
  [[maybe_unused]] const std::conditional_t<kHolds, HeldSlice<kFormat>, NoSlice> held(ring, lane);
  if constexpr (kHolds) {
    weights.Free();
    request(kStages);
  } else {
    // The first k-tiles are decoded before x is there.
#pragma unroll
    for (int u = 0; u < kUnits; ++u) decode_tile(u, 0);
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int atom = 0; atom < 4; ++atom)
#pragma unroll
        for (int r = 0; r < 4; ++r) asm volatile("" : "+r"(a[u][atom][r]));
  }
  if constexpr (!kAsksFirst) ask_for_x();
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
  const auto multiply = [&](int u, const uint4& low, const uint4& high) {
    if (!has[u]) return;
    ptx::MmaBf16(sums[u], a[u][0], low.x, low.y);
    ptx::MmaBf16(sums[u], a[u][1], low.z, low.w);
    ptx::MmaBf16(sums[u], a[u][2], high.x, high.y);
    ptx::MmaBf16(sums[u], a[u][3], high.z, high.w);
  };
  if constexpr (kHolds) {
    // What is in registers and in the other stage, then what came last.
    if (has[1]) weights.template Wait<1>(1, 0);
#pragma unroll
    for (int t = 0; t < kSliceTiles; ++t) {
      const uint4 low = x_lane[t * 8], high = x_lane[t * 8 + 1];
      held.scales.Decode(held.codes[t], t, a[0]);
      multiply(0, low, high);
      decode_tile(1, t);
      multiply(1, low, high);
    }
    if (has[2]) weights.template Wait<0>(0, 1);
#pragma unroll
    for (int t = 0; t < kSliceTiles; ++t) {
      const uint4 low = x_lane[t * 8], high = x_lane[t * 8 + 1];
      decode_tile(2, t);
      multiply(2, low, high);
    }
    __syncwarp();  // the stages are read
  } else {
#pragma unroll
    for (int t = 0; t < kSliceTiles; ++t) {
      const uint4 low = x_lane[t * 8], high = x_lane[t * 8 + 1];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) multiply(u, low, high);
      if (t + 1 < kSliceTiles)
#pragma unroll
        for (int u = 0; u < kUnits; ++u) decode_tile(u, t + 1);
    }
  }
  // All columns of an atom are the token. With held slices there is no room for sums but in the
  // first stages, where row tile i has floats 16 i .. of the warps that took its slices.
  if (lane % 4 == 0) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = warp + u * kWarps;
      float* const to = kHolds
                            ? reinterpret_cast<float*>(ring) + (unit >> p.slice_shift) * kTileRows
                            : partials[kHolds ? 0 : unit];
      to[lane / 4] = sums[u][0];
      to[lane / 4 + 8] = sums[u][2];
    }
  }
  __syncthreads();
  if (!finishes) return;
  const int first_unit = thread / kTileRows << p.slice_shift;
  constexpr int kStride = kHolds ? kSliceBytes / 4 : kTileRows;  // floats from a slice to the next
  const float* partial =
      kHolds ? reinterpret_cast<const float*>(memory) + first_unit % kWarps * kStride + thread
             : &partials[kHolds ? 0 : first_unit][thread % kTileRows];
  float sum = 0.0f;
#pragma unroll 1
  for (int first = 0; first < slices; first += kLeastSlices)
#pragma unroll
    for (int s = 0; s < kLeastSlices; ++s) sum += partial[(first + s) * kStride];
  float result = sum * scale;
  if (has_bias) result += bias;
  if (of_tail) {
    *static_cast<float*>(y) = result;
    return;
  }
  if (add) result = ptx::RoundBf16(result) + ptx::FirstBf16(old);
  *static_cast<uint16_t*>(y) = static_cast<uint16_t>(ptx::PackBf16(result, 0.0f));
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
      if (units == 3)
        return norms ? reinterpret_cast<const void*>(&OneTokenKernel<TileFormat::kNvfp4, 3, true>)
                     : nullptr;
      return units == 1 ? KernelOf<TileFormat::kNvfp4, 1>(norms)
                        : KernelOf<TileFormat::kNvfp4, 2>(norms);
    case TileFormat::kMxfp4:
      if (units == 3) return nullptr;
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
  int units = 0;  // of a warp
  int blocks = 0;
  int shared_bytes = 0;  // beside what is static
};

// row_tiles: of both weights, where there is a second one.
Launch PlanOf(const WeightTiles& weight, int row_tiles, bool norms) {
  const int slices = weight.slices();
  if (weight.k % kSliceColumns != 0 || (slices != kLeastSlices && slices != kWarps)) return {};
  const int blocks = std::min(CurrentDevice().multiprocessors, row_tiles);
  const int most = (row_tiles + blocks - 1) / blocks * slices;  // units of a CTA
  const int units = (most + kWarps - 1) / kWarps;
  if (units > kMostUnits) return {};
  return {KernelOf(weight.format, units, norms), units, blocks,
          std::min(most, kStages * kWarps) * weight.slice_stride()};
}

// Two launches share a multiprocessor.
bool Fits(const Launch& launch) {
  const int sums = launch.units > kStages ? kTileRows : launch.units * kWarps * kTileRows;
  const int static_bytes = kWarps * (kSliceColumns * 2 + kStages * 8) + (sums + kWarps) * 4;
  return launch.kernel != nullptr &&
         launch.shared_bytes + static_bytes + kReservedPerCta <=
             std::min(CurrentDevice().shared_memory_per_block, kSplitOfOneToken / 2);
}

Launch PlanOf(const DecodeArgs& args, const DecodeArgs* second) {
  const int row_tiles = args.weight.row_tiles + (second != nullptr ? second->weight.row_tiles : 0);
  return PlanOf(args.weight, row_tiles, args.norm.weight != nullptr);
}

bool Takes(const DecodeArgs& args, const Launch& launch) {
  return args.m == 1 && args.y != nullptr && !args.activates &&
         args.weight.row_tile_bytes == args.weight.slices() * args.weight.slice_stride() &&
         Fits(launch);
}

// second: or null.
void LaunchBoth(const DecodeArgs& args, const DecodeArgs* second, void* stream) {
  const WeightTiles& weight = args.weight;
  const Launch launch = PlanOf(args, second);
  AskForSplit(launch.kernel, kSplitOfOneToken);
  cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       launch.shared_bytes);
  const int row_tiles = weight.row_tiles + (second != nullptr ? second->weight.row_tiles : 0);
  Args kernel_args = {.data = weight.data,
                      .x = args.x,
                      .norm_weight = args.norm.weight,
                      .row_scales = weight.row_scales,
                      .bias = args.bias,
                      .y = args.y,
                      .tail_tile = weight.row_tiles,
                      .row_tile_bytes = static_cast<int32_t>(weight.row_tile_bytes),
                      .slice_shift = std::countr_zero(static_cast<unsigned>(weight.slices())),
                      .share = row_tiles / launch.blocks,
                      .larger = row_tiles % launch.blocks,
                      .n = weight.n,
                      .inverse_d = 1.0f / static_cast<float>(weight.k),
                      .eps = args.norm.eps,
                      .style = args.norm.style,
                      .add = args.add};
  if (second != nullptr) {
    kernel_args.tail_data = second->weight.data;
    kernel_args.tail_scales = second->weight.row_scales;
    kernel_args.tail_y = second->y_f32;
    kernel_args.tail_n = second->weight.n;
  }
  const auto kernel = reinterpret_cast<void (*)(Args)>(const_cast<void*>(launch.kernel));
  LaunchPdl(kernel, dim3(launch.blocks), dim3(kThreads), launch.shared_bytes,
            static_cast<cudaStream_t>(stream), kernel_args);
}

}  // namespace

bool OneTokenTakes(const DecodeArgs& args) { return Takes(args, PlanOf(args, nullptr)); }
void LaunchOneToken(const DecodeArgs& args, void* stream) { LaunchBoth(args, nullptr, stream); }

bool OneTokenTakesBoth(const DecodeArgs& first, const DecodeArgs& second) {
  const Launch launch = PlanOf(first, &second);
  return MeetOneX(first, second) && launch.units == kMostUnits && Takes(first, launch);
}
void LaunchOneTokenBoth(const DecodeArgs& first, const DecodeArgs& second, void* stream) {
  LaunchBoth(first, &second, stream);
}

}  // namespace nibble::kernels::cuda
