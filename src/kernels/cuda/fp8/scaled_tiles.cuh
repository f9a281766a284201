// Tiles of y = x Wᵀ for Hopper in E4M3, on the frame of ../prefill/tile_product.cuh: a producer
// keeps a ring of tokens full, consumers own 64 rows and all tokens of a tile, and their warps copy
// their own weights. Nothing is decoded: a lane's bytes of a k-tile are its A fragments, as the
// tokens follow their order (tokens.h).
//
// wgmma's sums of E4M3 keep about 14 bits, so that a chain has 128 columns and ends in FP32: the
// total += chain, or where scales go by groups of 128 columns, += chain * (weight's * token's).
//
// Weights and tokens of a tile of 128 x 128 would be 64 bytes per clock from L2, more than there
// are: tiles are 192 tokens wide.
#pragma once

#include "kernels/cuda/fp8/tokens.h"
#include "kernels/cuda/prefill/dense_tiles.cuh"
#include "kernels/cuda/prefill/tile_product.cuh"
#include "kernels/cuda/ptx/named_barrier.cuh"

namespace nibble::kernels::cuda::fp8 {

template <TileFormat kTileFormat, int kTileTokens>
struct ScaledShape {
  static constexpr TileFormat kFormat = kTileFormat;
  static constexpr bool kGroups = HasGroups(kFormat);
  static constexpr int kN = kTileTokens;
  static constexpr int kTokens = kN;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kRows = kConsumers * kWarpgroupRows;
  static constexpr int kRowTiles = kRows / kTileRows;

  static constexpr int kCodeBytes = CodeBytes(kFormat);
  static constexpr int kScaleBytes = ScaleBytes(kFormat, kFp8GroupColumns);
  static constexpr int kWeightSlices = 2;
  static constexpr int kScaleSlots = kWeightSlices + (kGroups ? 1 : 0);
  static constexpr int kWeightTiles = kWeightSlices * kSliceTiles;
  static constexpr int kWarpBytes = kWeightTiles * kCodeBytes + kScaleSlots * kScaleBytes;
  static constexpr int kWeightBytes = kConsumers * 4 * kWarpBytes;

  // A stage: codes of 128 columns, then scales, to a multiple of 1,024.
  static constexpr int kTokenBytes = kN * kFp8GroupColumns;
  static constexpr int kStageBytes = kTokenBytes + (kGroups ? 1024 : 0);
  static constexpr int kStages = kN > 128 ? 4 : 6;
  static constexpr int kOutputBytes = kConsumers * kN * kWarpgroupRows * 2;
  static constexpr int kAllocatedBytes = 1024 /* alignment */ + kStages * kStageBytes +
                                         kWeightBytes + kOutputBytes + RowTilesBytes(kConsumers) +
                                         2 * kStages * 8;
  static_assert(kAllocatedBytes <= 227 * 1024);

  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = 240;
};

struct ScaledProblem {
  DenseProblem dense;  // its tokens are not read
  QuantizedTokens x;
};

#ifdef NIBBLE_HAVE_WGMMA

// One thread.
template <typename Shape>
__device__ __forceinline__ void Produce(const TileStorage<Shape>& storage,
                                        const ScaledProblem& problem) {
  const QuantizedTokens& x = problem.x;
  RingPosition<Shape::kStages> at;
  for (int i = blockIdx.x; i < problem.dense.count(); i += gridDim.x) {
    const TileWork work = problem.dense.At(i);
    const int first = work.first_token / kTokensOfGroup;
    const int groups = (work.tokens + kTokensOfGroup - 1) / kTokensOfGroup;
    const uint32_t scale_bytes = Shape::kGroups ? groups * kTokensOfGroup * 4 : 0;
    for (int group = 0; group < x.column_groups; ++group) {
      const int64_t piece = int64_t{group} * x.token_groups + first;
      std::byte* const stage = storage.stages + at.slot * Shape::kStageBytes;
      uint64_t* const full = storage.full + at.slot;
      ptx::BarrierWait(storage.free + at.slot, at.phase ^ 1);
      ptx::BarrierExpect(full, groups * kPieceBytes + scale_bytes);
      ptx::BulkCopy(stage, x.codes + piece * kPieceBytes, groups * kPieceBytes, full);
      if (Shape::kGroups)
        ptx::BulkCopy(stage + Shape::kTokenBytes, x.scales + piece * kTokensOfGroup, scale_bytes,
                      full);
      at.Advance();
    }
  }
}

// Warpgroups take turns at the tensor cores, a chain each, so that one adds while another
// multiplies. On an H100 it is as fast without.
// Barriers 1..kWarpgroups are Store's.
template <int kWarpgroups>
struct ChainTurns {
  static constexpr int kThreads = 2 * kWarpgroupThreads;
  const int warpgroup;

  // Once.
  __device__ __forceinline__ void Begin() const {
    if (warpgroup == kWarpgroups - 1) Pass();
  }
  __device__ __forceinline__ static int Barrier(int of) { return 1 + kWarpgroups + of; }
  // Before a chain.
  __device__ __forceinline__ void Take() const { ptx::SyncThreads(Barrier(warpgroup), kThreads); }
  // When its last MMA has been issued.
  __device__ __forceinline__ void Pass() const {
    ptx::ArriveThreads(Barrier((warpgroup + 1) % kWarpgroups), kThreads);
  }
};

// A consumer warpgroup. Accumulators as in tile_sums.cuh.
template <typename Shape>
struct ScaledConsumer {
  static constexpr int kN = Shape::kN;

  const TileStorage<Shape>& storage;
  WeightRing<Shape>& weights;
  const uint64_t tokens;  // descriptor of stage 0
  const ChainTurns<Shape::kConsumers> turns;
  RingPosition<Shape::kStages> at;
  uint32_t a[4][4];         // of the next 128 columns
  GroupScales::Rows scale;  // of these

  __device__ __forceinline__ ScaledConsumer(const TileStorage<Shape>& s, WeightRing<Shape>& w,
                                            int warpgroup)
      : storage(s), weights(w), tokens(ptx::WgmmaDescriptor(s.stages)), turns{warpgroup} {
    turns.Begin();
  }

  // Half kHalf of the slice that `weights` is at; `tiles`: how many k-tiles it has, or more.
  template <int kHalf>
  __device__ __forceinline__ void Load(int tiles) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const int u = 2 * kHalf + v;
      weights.Wait();
      if (Shape::kGroups && v == 0) {
        const float* const scales =
            reinterpret_cast<const float*>(weights.scales()) + kHalf * kTileRows + lane / 4;
        scale = {scales[0], scales[8]};
      }
      uint4 low = {}, high = {};
      if (u < tiles) {
        const auto* vectors = reinterpret_cast<const uint4*>(weights.codes(u)) + lane;
        low = vectors[0];
        high = vectors[32];
      }
      SetAtom(2 * v, low.x, high.x, low.y, high.y);
      SetAtom(2 * v + 1, low.z, high.z, low.w, high.w);
      weights.Fill(u);
    }
    if (kHalf == 1) weights.NextSlice();
  }
  __device__ __forceinline__ void SetAtom(int j, uint32_t a0, uint32_t a1, uint32_t a2,
                                          uint32_t a3) {
    a[j][0] = a0;
    a[j][1] = a1;
    a[j][2] = a2;
    a[j][3] = a3;
  }

  __device__ __forceinline__ void Multiply(float (&chain)[kN / 2]) {
    ptx::BarrierWait(storage.full + at.slot, at.phase);
    turns.Take();
    ptx::WgmmaFence();
#pragma unroll
    for (int j = 0; j < 4; ++j)
      ptx::WgmmaE4m3<kN>(chain, a[j],
                         ptx::WgmmaDescriptorAt(tokens, at.slot * Shape::kStageBytes + 32 * j),
                         j > 0);
    ptx::WgmmaCommit();
    turns.Pass();
  }

  // weight: the scales of the chain's columns.
  __device__ __forceinline__ void Promote(GroupScales::Rows weight, const float (&chain)[kN / 2],
                                          float (&total)[kN / 2]) {
    if constexpr (Shape::kGroups) {
      const auto* const pairs = reinterpret_cast<const float2*>(
          storage.stages + at.slot * Shape::kStageBytes + Shape::kTokenBytes);
#pragma unroll
      for (int i = 0; i < kN / 2; i += 4) {
        const float2 x = pairs[i + threadIdx.x % 4];
        total[i] = __fmaf_rn(weight.low * x.x, chain[i], total[i]);
        total[i + 1] = __fmaf_rn(weight.low * x.y, chain[i + 1], total[i + 1]);
        total[i + 2] = __fmaf_rn(weight.high * x.x, chain[i + 2], total[i + 2]);
        total[i + 3] = __fmaf_rn(weight.high * x.y, chain[i + 3], total[i + 3]);
      }
      __syncwarp();
    } else {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) total[i] += chain[i];
    }
    if (threadIdx.x % 32 == 0) ptx::BarrierArrive(storage.free + at.slot);
    at.Advance();
  }

  // The next weights move to registers while the chain's sums are added.
  __device__ __forceinline__ void Run(int k_tiles, float (&total)[kN / 2]) {
    float chain[kN / 2];
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) total[i] = 0.0f;
    Load<0>(k_tiles);
    for (int left = k_tiles; left > 0; left -= kSliceTiles) {
      GroupScales::Rows weight = scale;
      Multiply(chain);
      ptx::WgmmaWait<0>();
      ptx::WgmmaPin(chain);
      Load<1>(left);
      Promote(weight, chain, total);
      if (left <= kSliceTiles / 2) break;
      weight = scale;
      Multiply(chain);
      ptx::WgmmaWait<0>();
      ptx::WgmmaPin(chain);
      if (left > kSliceTiles) Load<0>(left - kSliceTiles);
      Promote(weight, chain, total);
    }
  }
};

template <typename Shape>
__device__ __forceinline__ void Consume(const TileStorage<Shape>& storage,
                                        const ScaledProblem& problem) {
  // The shuffle tells the compiler that it is the same for the warp.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  const int warp = threadIdx.x % kWarpgroupThreads / 32;
  const WeightTiles& like = problem.dense.like();
  const int count = problem.dense.count();
  const RowTilesOfWorks<DenseProblem> row_tiles{problem.dense, like, count, warpgroup, warp};
  WeightRing<Shape> weights(storage, like);
  int turn = 0;
  for (; turn < weights.kAhead; ++turn) weights.Announce(turn, row_tiles.Of(turn));
  weights.Start();
  ScaledConsumer<Shape> consumer(storage, weights, warpgroup);
  for (int i = blockIdx.x; i < count; i += gridDim.x) {
    weights.Announce(turn, row_tiles.Of(turn));
    ++turn;
    const TileWork work = problem.dense.At(i);
    const DenseOutput out = problem.dense.output();
    float total[Shape::kN / 2];
    consumer.Run(like.k_tiles, total);
    if constexpr (!Shape::kGroups) {
      const int last = problem.x.token_groups * kTokensOfGroup - 2;
      const int token = work.first_token + threadIdx.x % 4 * 2;
#pragma unroll
      for (int v = 0; v < Shape::kN / 2; v += 4) {
        const float2 x =
            *reinterpret_cast<const float2*>(problem.x.scales + min(token + 2 * v, last));
        total[v] *= x.x;
        total[v + 1] *= x.y;
        total[v + 2] *= x.x;
        total[v + 3] *= x.y;
      }
    }
    const TileEnd end = EndOf<Shape::kN>(work, out, warpgroup, 0);
    Store<Shape::kN>(out, total, end,
                     storage.outputs + warpgroup * (Shape::kN * kWarpgroupRows * 2), warpgroup + 1);
  }
}

#endif  // NIBBLE_HAVE_WGMMA

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    ScaledTilesKernel(const __grid_constant__ ScaledProblem problem) {
#ifdef NIBBLE_HAVE_WGMMA
  extern __shared__ std::byte tile_memory[];
  const TileStorage<Shape> storage(tile_memory);
  storage.Init(1);
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if (threadIdx.x / kWarpgroupThreads == Shape::kConsumers) {
    ptx::GiveRegisters<Shape::kProducerRegisters>();
    if (threadIdx.x % kWarpgroupThreads == 0) Produce<Shape>(storage, problem);
  } else {
    ptx::TakeRegisters<Shape::kConsumerRegisters>();
    Consume<Shape>(storage, problem);
  }
#endif
}

}  // namespace nibble::kernels::cuda::fp8
