// What a large weight costs beside its bytes are instructions and power: what is decoded meets one
// token, and the GPU is at its limit. So little stands between a slice's arrival and its products:
//
//   - A CTA takes a contiguous share of the row tiles, two CTAs share a multiprocessor. Slices are
//     walked outside, row tiles inside: warp w takes slice w of all row tiles, then slice w + 8,
//     ..., a round each, and keeps its slice of x in registers meanwhile. Where the last round has
//     fewer slices than there are warps, warps share them by row tiles.
//   - Only column 0 of an MMA's eight holds the token, the others are zero.
//   - A stage of the ring is one bulk copy, by one lane.
//   - Sums of slices wait in shared memory until the end, where a thread per row adds them up.
#include "kernels/cuda/linear/stream_token.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/decode_kernels.h"
#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/norm/normalize.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/copy_parts.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/ptx/prefetch.cuh"
#include "kernels/cuda/shared_memory_split.h"
#include "numerics/bf16.h"

namespace nibble::kernels::cuda {
namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

constexpr int kWarpShift = 3;
constexpr int kWarps = 1 << kWarpShift;
constexpr int kThreads = kWarps * 32;
constexpr int kMostStages = 6;   // of a warp's ring
constexpr int kFirstStages = 4;  // those that are asked for before x, which comes after them
constexpr int kPlaces = 4;       // slices of x of a warp in shared memory
constexpr int kMostNormedRounds = kMaxFusedNormWidth / kSliceColumns / kWarps;
static_assert(kMostNormedRounds <= kPlaces);

struct Args {
  const std::byte* data = nullptr;
  const uint16_t* x = nullptr;
  const float* norm_weight = nullptr;
  const float* row_scales = nullptr;
  const float* bias = nullptr;  // or null
  uint16_t* y = nullptr;        // or
  float* y_f32 = nullptr;
  // Row tiles from `tail_tile` on are those of a second weight, whose outputs are FP32. They lie
  // tail_jump bytes further on than they would behind the first one's.
  const float* tail_scales = nullptr;
  float* tail_y = nullptr;
  int64_t tail_jump = 0;
  int32_t tail_tile = 0;
  int32_t tail_n = 0;
  int32_t row_tile_bytes = 0;
  int32_t slices = 0;
  int32_t last_shift = 0;  // log2 of the last round's slices
  int32_t stages = 0;      // of a warp's ring, a multiple of a slice's
  int32_t places = 0;      // of x
  int32_t share = 0;       // row tiles of a CTA
  int32_t larger = 0;      // CTAs with one more
  int32_t n = 0;
  float inverse_d = 0.0f;
  float eps = 0.0f;
  NormStyle style = {};
  bool add = false;  // to y
  bool activates = false;
  Activation activation;
};

// A stage of a ring: a slice of a row tile, or a part of it.
template <TileFormat kFormat>
struct Stage {
  static constexpr int kVectors = 4;  // 512 bytes of codes each
  static constexpr int kPerTile = decode::VectorsPerTile(kFormat);
  static constexpr int kTiles = kVectors / kPerTile;
  static constexpr int kParts = kSliceTiles / kTiles;  // stages of a slice
  static constexpr int kCodeBytes = kVectors * 512;
  static constexpr int kBytes = kCodeBytes + ScaleBytes(kFormat, 0);
  static_assert(kParts == 1 || ScaleBytes(kFormat, 0) == 0);
};

// A stage in a lane's registers.
template <TileFormat kFormat>
struct Held {
  using S = Stage<kFormat>;
  uint4 codes[S::kVectors];
  LaneScales<kFormat> scales;

  __device__ __forceinline__ Held(const std::byte* stage, int lane)
      : scales(stage + S::kCodeBytes, 0, lane) {
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v)
      codes[v] = *reinterpret_cast<const uint4*>(stage + v * 512 + lane * 16);
  }
  // k-tile i of the stage, t of the slice.
  __device__ __forceinline__ void Multiply(int i, int t, const uint4 (&columns)[2],
                                           float (&sums)[4]) const {
    uint32_t a[4][4];
    uint4 of_tile[S::kPerTile];
#pragma unroll
    for (int v = 0; v < S::kPerTile; ++v) of_tile[v] = codes[i * S::kPerTile + v];
    scales.Decode(of_tile, t, a);
    ptx::MmaBf16(sums, a[0], columns[0].x, columns[0].y);
    ptx::MmaBf16(sums, a[1], columns[0].z, columns[0].w);
    ptx::MmaBf16(sums, a[2], columns[1].x, columns[1].y);
    ptx::MmaBf16(sums, a[3], columns[1].z, columns[1].w);
  }
};

#if __CUDA_ARCH__ >= 900

// What a warp visits: (round, row tile). In the last round, of 2^last_shift slices, warps that have
// the same slice share the row tiles.
struct Walk {
  int first_tile;  // of the CTA
  int tiles;
  int rounds;
  int last_begin;
  int last_end;
  int slice_of_last;
  int warp;

  __device__ __forceinline__ Walk(const Args& p, int w) : warp(w) {
    const int block = static_cast<int>(blockIdx.x);
    first_tile = block * p.share + min(block, p.larger);
    tiles = p.share + (block < p.larger ? 1 : 0);
    rounds = (p.slices + kWarps - 1) / kWarps;
    const int mine = warp >> p.last_shift, shift = kWarpShift - p.last_shift;
    last_begin = tiles * mine >> shift;
    last_end = tiles * (mine + 1) >> shift;
    slice_of_last = (rounds - 1) * kWarps + (warp & ((1 << p.last_shift) - 1));
  }
  __device__ __forceinline__ bool last(int round) const { return round + 1 == rounds; }
  __device__ __forceinline__ int begin(int round) const { return last(round) ? last_begin : 0; }
  __device__ __forceinline__ int end(int round) const { return last(round) ? last_end : tiles; }
  __device__ __forceinline__ int slice(int round) const {
    return last(round) ? slice_of_last : round * kWarps + warp;
  }
};

// The CTA's shared memory.
struct Shared {
  std::byte* ring;  // of the warp
  uint16_t* x;      // (places, 256) of the warp
  float* scales;    // of rows
  float* biases;    // of rows, where there is a bias
  float* partials;  // sums of slices: (row tiles, slices, 16)

  __device__ __forceinline__ Shared(const Args& p, std::byte* at, int warp, int stage_bytes) {
    const int rows = (p.share + 1) * kTileRows;
    ring = at + warp * p.stages * stage_bytes;
    at += kWarps * p.stages * stage_bytes;
    x = reinterpret_cast<uint16_t*>(at) + warp * p.places * kSliceColumns;
    at += kWarps * p.places * kSliceColumns * 2;
    scales = reinterpret_cast<float*>(at);
    biases = scales + rows;
    partials = biases + (p.bias != nullptr ? rows : 0);
  }
};

// What a warp has asked for.
template <TileFormat kFormat, bool kPair>
struct Requests {
  using S = Stage<kFormat>;
  const Args& p;
  const Walk& walk;
  const std::byte* from;
  int round = 0;
  int left;  // row tiles of the round
  int to_tail;

  __device__ __forceinline__ Requests(const Args& args, const Walk& w) : p(args), walk(w) {
    Enter();
  }
  __device__ __forceinline__ void Enter() {
    const int begin = walk.begin(round), tile = walk.first_tile + begin;
    left = walk.end(round) - begin;
    from = p.data + int64_t{tile} * p.row_tile_bytes + walk.slice(round) * (S::kParts * S::kBytes);
    to_tail = p.tail_tile - tile;
    if (kPair && to_tail <= 0) from += p.tail_jump;
  }
  // The next stage, which is part `part` of a slice.
  __device__ __forceinline__ void Next(uint32_t stage, uint32_t barrier, int part) {
    if (left == 0) return;
    ptx::BulkCopyOfWarp(stage, from + part * S::kBytes, S::kBytes, barrier);
    if (part < S::kParts - 1) return;
    from += p.row_tile_bytes;
    if (kPair && --to_tail == 0) from += p.tail_jump;
    if (--left == 0 && ++round < walk.rounds) Enter();
  }
};

// Row scales and bias of the CTA's rows to shared memory: there when this thread's copies are.
template <bool kPair>
__device__ __forceinline__ void RequestScales(const Args& p, const Walk& walk,
                                              const Shared& shared) {
  const int tail_row = p.tail_tile * kTileRows;
  for (int i = static_cast<int>(threadIdx.x); i < walk.tiles * kTileRows; i += kThreads) {
    const int row = walk.first_tile * kTileRows + i;
    const bool tail = kPair && row >= tail_row;
    ptx::CopyAsync4(shared.scales + i,
                    tail ? p.tail_scales + (row - tail_row) : p.row_scales + row);
    if (p.bias != nullptr && !tail) {
      const int stacked = p.activates ? PairedStackRow(row, p.n / 2) : row;
      shared.biases[i] = row < p.n ? p.bias[stacked] : 0.0f;
    }
  }
  ptx::CommitCopies();
}

// Adds up slices of the CTA's row i, and of two rows i and i + 8.
template <int kRows>
__device__ __forceinline__ void Finish(const Args& p, const Shared& shared, int i, bool has_bias,
                                       float (&results)[kRows]) {
  const float* partial = shared.partials + i / kTileRows * p.slices * kTileRows + i % kTileRows;
#pragma unroll
  for (int r = 0; r < kRows; ++r) results[r] = 0.0f;
#pragma unroll 16 / kRows
  for (int s = 0; s < p.slices; ++s, partial += kTileRows)
#pragma unroll
    for (int r = 0; r < kRows; ++r) results[r] += partial[r * kPairedRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    results[r] *= shared.scales[i + r * kPairedRows];
    if (has_bias) results[r] += shared.biases[i + r * kPairedRows];
  }
}

template <bool kPair>
__device__ __forceinline__ void StoreOutputs(const Args& p, const Walk& walk,
                                             const Shared& shared) {
  const bool has_bias = p.bias != nullptr;
  const int first_row = walk.first_tile * kTileRows, rows = walk.tiles * kTileRows;
  if (p.activates) {
    for (int o = static_cast<int>(threadIdx.x); o < rows / 2; o += kThreads) {
      const int i = o / kPairedRows * kTileRows + o % kPairedRows;
      if (first_row + i >= p.n) continue;
      float results[2];
      Finish(p, shared, i, has_bias, results);
      const float activated =
          Activate(p.activation, ptx::RoundBf16(results[0]), ptx::RoundBf16(results[1]));
      p.y[PairedOutput(first_row + i)] = static_cast<uint16_t>(ptx::PackBf16(activated, 0.0f));
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < rows; i += kThreads) {
    const int row = first_row + i, tail_row = row - p.tail_tile * kTileRows;
    const bool tail = kPair && tail_row >= 0;
    if (tail ? tail_row >= p.tail_n : row >= p.n) continue;
    float result[1];
    Finish(p, shared, i, has_bias && !tail, result);
    if (tail) {
      p.tail_y[tail_row] = result[0];
    } else if (p.y == nullptr) {
      p.y_f32[row] = result[0];
    } else {
      const uint16_t rounded = Bf16FromFloat(result[0]);
      p.y[row] = p.add ? Bf16FromFloat(Bf16ToFloat(p.y[row]) + Bf16ToFloat(rounded)) : rounded;
    }
  }
}

#endif

template <TileFormat kFormat, bool kNorms, bool kPair>
__global__ void __launch_bounds__(kThreads, 2) StreamTokenKernel(const __grid_constant__ Args p) {
#if __CUDA_ARCH__ >= 900
  using S = Stage<kFormat>;
  extern __shared__ uint4 memory[];
  __shared__ uint64_t filled[kWarps][kMostStages];
  __shared__ uint64_t x_filled[kWarps][kPlaces];
  [[maybe_unused]] __shared__ float squares[kMostNormedRounds * kWarps];

  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Walk walk(p, warp);
  const Shared shared(p, reinterpret_cast<std::byte*>(memory), warp, S::kBytes);
  if (lane < kMostStages) ptx::BarrierInit(&filled[warp][lane], 1);
  if (lane < kPlaces) ptx::BarrierInit(&x_filled[warp][lane], 1);
  ptx::FenceBarrierInit();
  __syncwarp();

  // What a norm needs first is asked for first.
  [[maybe_unused]] float weight[kNorms ? kMostNormedRounds : 1][kVector];
  if constexpr (kNorms)
#pragma unroll
    for (int r = 0; r < kMostNormedRounds; ++r)
      if (r < walk.rounds)
        LoadF32x8(p.norm_weight + walk.slice(r) * kSliceColumns + lane * kVector, kVector, true,
                  weight[r]);
  Requests<kFormat, kPair> requests(p, walk);
  const uint32_t first_stage = ptx::SharedAddress(shared.ring);
  const uint32_t first_barrier = ptx::SharedAddress(filled[warp]);
  const uint32_t end_barrier = first_barrier + p.stages * 8;
  const auto fill = [&](int begin, int end) {
#pragma unroll 1
    for (int s = begin; s < end; s += S::kParts)
#pragma unroll
      for (int part = 0; part < S::kParts; ++part)
        requests.Next(first_stage + (s + part) * S::kBytes, first_barrier + (s + part) * 8, part);
  };
  fill(0, min(p.stages, kFirstStages));
  ptx::LaunchSuccessor();
  RequestScales<kPair>(p, walk, shared);

  // The warp's first slices of x.
  uint4 vectors[kPlaces];
  ptx::WaitForPredecessor();
#pragma unroll
  for (int r = 0; r < kPlaces; ++r)
    if (r < walk.rounds)
      vectors[r] =
          __ldcg(reinterpret_cast<const uint4*>(p.x + walk.slice(r) * kSliceColumns) + lane);
  fill(kFirstStages, p.stages);
  if (p.add)
    for (int i = static_cast<int>(threadIdx.x); i < walk.tiles; i += kThreads)
      ptx::PrefetchL1(p.y + (walk.first_tile + i) * kTileRows);
  if constexpr (kNorms) {
#pragma unroll
    for (int r = 0; r < kMostNormedRounds; ++r)
      if (r < walk.rounds) {
        const float sum = WarpSum(AddSquares(vectors[r], 0.0f));
        if (lane == 0) squares[walk.slice(r)] = sum;
      }
    __syncthreads();
    const float sum = WarpSum(lane < p.slices ? squares[lane] : 0.0f);
    const float inverse = InverseRoot(sum, p.inverse_d, p.eps);
#pragma unroll
    for (int r = 0; r < kMostNormedRounds; ++r)
      if (r < walk.rounds) vectors[r] = NormVector(vectors[r], inverse, weight[r], p.style);
  } else {
#pragma unroll
    for (int r = 0; r < kPlaces; ++r)
      if (r < walk.rounds)
        reinterpret_cast<uint4*>(shared.x + r * kSliceColumns)[lane] = vectors[r];
    __syncwarp();
  }

  uint4 columns[kSliceTiles][2] = {};  // of x; zeros but in lanes of column 0
  uint32_t stage = first_stage, barrier = first_barrier, parity = 0;
  const int partial_step = p.slices * kTileRows;
#pragma unroll 1
  for (int round = 0; round < walk.rounds; ++round) {
    // What is normed waits in registers and passes through one place.
    const int at = kNorms ? 0 : round % kPlaces;
    uint16_t* const place = shared.x + at * kSliceColumns;
    if constexpr (kNorms) {
      __syncwarp();
      reinterpret_cast<uint4*>(place)[lane] = vectors[0];
#pragma unroll
      for (int r = 1; r < kMostNormedRounds; ++r) vectors[r - 1] = vectors[r];
      __syncwarp();
    } else if (round >= kPlaces) {
      ptx::BarrierWait(&x_filled[warp][at], round / kPlaces % 2 == 0);
    }
    if (lane < 4)
#pragma unroll
      for (int t = 0; t < kSliceTiles; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          columns[t][half] =
              reinterpret_cast<const uint4*>(place + t * kTileColumns + lane * 16)[half];
    if (!kNorms && round + kPlaces < walk.rounds) {
      ptx::FenceAsyncProxy();
      __syncwarp();
      ptx::BulkCopyOfWarp(ptx::SharedAddress(place),
                          p.x + walk.slice(round + kPlaces) * kSliceColumns, kSliceColumns * 2,
                          ptx::SharedAddress(&x_filled[warp][at]));
    }
    const int begin = walk.begin(round);
    float* partial =
        shared.partials + (begin * p.slices + walk.slice(round)) * kTileRows + lane / 4;
#pragma unroll 1
    for (int left = walk.end(round) - begin; left > 0; --left, partial += partial_step) {
      float sums[4] = {};
#pragma unroll
      for (int part = 0; part < S::kParts; ++part) {
        ptx::BarrierWaitAt(barrier, parity);
        const Held<kFormat> held(static_cast<const std::byte*>(__cvta_shared_to_generic(stage)),
                                 lane);
        ptx::FenceAsyncProxy();  // all of it has been read
        __syncwarp();
        requests.Next(stage, barrier, part);
        stage += S::kBytes;
        barrier += 8;
        if (barrier == end_barrier) {
          stage = first_stage;
          barrier = first_barrier;
          parity ^= 1;
        }
#pragma unroll
        for (int i = 0; i < S::kTiles; ++i) {
          const int t = part * S::kTiles + i;
          held.Multiply(i, t, columns[t], sums);
        }
      }
      if (lane % 4 == 0) {
        partial[0] = sums[0];
        partial[8] = sums[2];
      }
    }
  }
  ptx::WaitForCopies<0>();
  __syncthreads();
  StoreOutputs<kPair>(p, walk, shared);
#endif
}

struct Instance {
  const void* kernel = nullptr;  // null: there is none
  int parts = 0;                 // stages of a slice
  int stage_bytes = 0;
};

template <TileFormat kFormat>
Instance InstanceOf(bool norms) {
  using S = Stage<kFormat>;
  return {norms ? reinterpret_cast<const void*>(&StreamTokenKernel<kFormat, true, false>)
                : reinterpret_cast<const void*>(&StreamTokenKernel<kFormat, false, false>),
          S::kParts, S::kBytes};
}

// pair: there is a second weight.
Instance InstanceOf(TileFormat format, bool norms, bool pair) {
  if (pair) {
    if (format != TileFormat::kBf16 || !norms) return {};
    Instance instance = InstanceOf<TileFormat::kBf16>(norms);
    instance.kernel =
        reinterpret_cast<const void*>(&StreamTokenKernel<TileFormat::kBf16, true, true>);
    return instance;
  }
  switch (format) {
    case TileFormat::kNvfp4:
      return InstanceOf<TileFormat::kNvfp4>(norms);
    case TileFormat::kMxfp4:
      return InstanceOf<TileFormat::kMxfp4>(norms);
    case TileFormat::kBf16:
      return InstanceOf<TileFormat::kBf16>(norms);
    case TileFormat::kFp8:
      return InstanceOf<TileFormat::kFp8>(norms);
    default:
      return {};
  }
}

constexpr int kStaticBytes = kWarps * (kMostStages + kPlaces) * 8 + kMostNormedRounds * kWarps * 4;
// Of a CTA's rings: less would not keep memory busy.
constexpr int kLeastRingBytes = 24 * 1024;

// A weight that is not lone shares multiprocessors with other launches of one token. Only BF16 is
// known to gain.
constexpr int64_t kLeastBf16Bytes = int64_t{16} << 20;
bool IsLarge(const WeightTiles& weight) {
  return IsLone(weight) || (weight.format == TileFormat::kBf16 &&
                            weight.row_tiles * weight.row_tile_bytes >= kLeastBf16Bytes);
}
int SplitOf(const WeightTiles& weight) { return IsLone(weight) ? WholeSplit() : kSplitOfOneToken; }

// Of the last round.
int LastSlices(const WeightTiles& weight) { return (weight.slices() - 1) % kWarps + 1; }

bool HasRounds(const WeightTiles& weight) {
  return weight.k % kSliceColumns == 0 && weight.x_tiles == weight.k_tiles &&
         weight.slices() >= kWarps &&
         std::has_single_bit(static_cast<unsigned>(LastSlices(weight)));
}

struct Launch {
  const void* kernel = nullptr;  // null: it takes another one
  int blocks = 0;
  int stages = 0;
  int places = 0;
  int shared_bytes = 0;  // beside what is static
};

// second: or null.
Launch PlanOf(const DecodeArgs& args, const DecodeArgs* second) {
  const WeightTiles& weight = args.weight;
  const bool norms = args.norm.weight != nullptr;
  const Instance instance = InstanceOf(weight.format, norms, second != nullptr);
  if (instance.kernel == nullptr || args.m != 1 || !HasLargeSharedMemory() || !IsLarge(weight) ||
      !HasRounds(weight) || (norms && weight.k > kMaxFusedNormWidth))
    return {};
  const int row_tiles = weight.row_tiles + (second != nullptr ? second->weight.row_tiles : 0);
  const int slices = weight.slices();
  Launch launch = {.kernel = instance.kernel,
                   .blocks = std::min(2 * CurrentDevice().multiprocessors, row_tiles),
                   .places = norms ? 1 : std::min(CeilDiv(slices, kWarps), kPlaces)};
  const int tiles = CeilDiv(row_tiles, launch.blocks);
  const int row_bytes = (row_tiles / launch.blocks + 1) * kTileRows * 4;
  const int rest = kWarps * launch.places * kSliceColumns * 2 +
                   (args.bias != nullptr ? 2 : 1) * row_bytes + tiles * slices * kTileRows * 4;
  const int of_stage = kWarps * instance.stage_bytes;
  const int fit = (SplitOf(weight) / 2 - kReservedPerCta - kStaticBytes - rest) / of_stage;
  launch.stages = std::min(fit, kMostStages) / instance.parts * instance.parts;
  if (launch.stages * of_stage < kLeastRingBytes) return {};
  // A third CTA, of the next launch, would find room on some multiprocessors before others.
  launch.shared_bytes = std::max(rest + launch.stages * of_stage, SplitOf(weight) / 3);
  return launch;
}

void SetSharedMemory(const Launch& launch, const WeightTiles& weight) {
  AskForSplit(launch.kernel, SplitOf(weight));
  cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       launch.shared_bytes);
}

void LaunchBoth(const DecodeArgs& args, const DecodeArgs* second, void* stream) {
  const WeightTiles& weight = args.weight;
  const Launch launch = PlanOf(args, second);
  SetSharedMemory(launch, weight);
  const int row_tiles = weight.row_tiles + (second != nullptr ? second->weight.row_tiles : 0);
  Args kernel_args = {.data = weight.data,
                      .x = args.x,
                      .norm_weight = args.norm.weight,
                      .row_scales = weight.row_scales,
                      .bias = args.bias,
                      .y = args.y,
                      .y_f32 = args.y_f32,
                      .tail_tile = weight.row_tiles,
                      .row_tile_bytes = static_cast<int32_t>(weight.row_tile_bytes),
                      .slices = weight.slices(),
                      .last_shift = std::countr_zero(static_cast<unsigned>(LastSlices(weight))),
                      .stages = launch.stages,
                      .places = launch.places,
                      .share = row_tiles / launch.blocks,
                      .larger = row_tiles % launch.blocks,
                      .n = weight.n,
                      .inverse_d = 1.0f / static_cast<float>(weight.k),
                      .eps = args.norm.eps,
                      .style = args.norm.style,
                      .add = args.add,
                      .activates = args.activates,
                      .activation = args.activation};
  if (second != nullptr) {
    kernel_args.tail_jump =
        second->weight.data - (weight.data + weight.row_tiles * weight.row_tile_bytes);
    kernel_args.tail_scales = second->weight.row_scales;
    kernel_args.tail_y = second->y_f32;
    kernel_args.tail_n = second->weight.n;
  }
  const auto kernel = reinterpret_cast<void (*)(Args)>(const_cast<void*>(launch.kernel));
  LaunchPdl(kernel, dim3(launch.blocks), dim3(kThreads), launch.shared_bytes,
            static_cast<cudaStream_t>(stream), kernel_args);
}

}  // namespace

bool StreamTokenTakes(const DecodeArgs& args) { return PlanOf(args, nullptr).kernel != nullptr; }
void LaunchStreamToken(const DecodeArgs& args, void* stream) { LaunchBoth(args, nullptr, stream); }

int StreamTokenBlocksPerMultiprocessor(const DecodeArgs& args) {
  const Launch launch = PlanOf(args, nullptr);
  SetSharedMemory(launch, args.weight);
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, launch.kernel, kThreads,
                                                launch.shared_bytes);
  return blocks;
}

bool StreamTokenTakesBoth(const DecodeArgs& first, const DecodeArgs& second) {
  return MeetOneX(first, second) && first.y != nullptr && !first.activates &&
         PlanOf(first, &second).kernel != nullptr;
}
void LaunchStreamTokenBoth(const DecodeArgs& first, const DecodeArgs& second, void* stream) {
  LaunchBoth(first, &second, stream);
}

}  // namespace nibble::kernels::cuda
