// What the warps of tile_product.cuh do that do not multiply: bring tokens into shared memory, and
// take outputs from there to y.
#pragma once

#include "kernels/cuda/prefill/lay_out.cuh"
#include "kernels/cuda/prefill/tile_output.cuh"
#include "kernels/cuda/prefill/tile_storage.cuh"
#include "kernels/cuda/prefill/tokens.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/named_barrier.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace nibble::kernels::cuda {

#ifdef NIBBLE_HAVE_WGMMA

// A warp that fills the ring with prepared tokens, by one lane; the others come along, so that it
// does not diverge (bulk_copy.cuh).
template <typename Shape>
struct TokenProducer {
  const TileStorage<Shape>& storage;
  RingPosition<Shape::kStages> at;
  LaidOut laid_out;

  // Slice by slice; places of k-tiles that a short slice lacks are passed on empty.
  __device__ __forceinline__ void Run(const PreparedTokens& x, const TileWork& work, int k_tiles) {
    const bool mine = threadIdx.x % 32 == 0;
    const uint32_t bytes = (work.tokens + kGroupTokens - 1) / kGroupTokens * kPieceBytes;
    const int64_t tile_bytes = int64_t{x.groups} * kPieceBytes;
    const std::byte* const first = x.data + work.first_token / kGroupTokens * kPieceBytes;
    const std::byte* from = first;
    laid_out.Await(x, work.first_token);
    int x_tile = 0;
    const int stages = (k_tiles + kSliceTiles - 1) / kSliceTiles * kSliceTiles;
    for (int tile = 0; tile < stages; ++tile) {
      uint64_t* const full = storage.full + at.slot;
      ptx::BarrierWait(storage.free + at.slot, at.phase ^ 1);
      if (tile < k_tiles) {
        ptx::BarrierExpectIf(mine, full, bytes);
        ptx::BulkCopyIf(mine, storage.stages + at.slot * Shape::kStageBytes, from, bytes, full);
        from += tile_bytes;
        if (++x_tile == x.tiles) {
          x_tile = 0;
          from = first;
        }
      } else if (mine) {
        ptx::BarrierArrive(full);
      }
      at.Advance();
    }
  }
};

// A warpgroup that fills the ring with rows of permuted tokens (tokens.h) from anywhere.
template <typename Shape>
struct GatherProducer {
  // A thread copies chunk threadIdx % 8 of every 16th row.
  static constexpr int kRowStep = kWarpgroupThreads / 8;
  static constexpr int kRowsOfThread = Shape::kTokens / kRowStep;
  static constexpr int kInFlight = 5;  // stages that may be on their way
  // A stage is handed on when kInFlight - 1 more are started. Of a slice with one k-tile the
  // consumers release that one's place behind all four: no place of it may be needed before these
  // are handed on.
  static_assert(kInFlight <= Shape::kStages - kSliceTiles + 1);

  const TileStorage<Shape>& storage;
  RingPosition<Shape::kStages> at;
  int started = 0;  // stages
  int handed_on = 0;

  template <typename Problem>
  __device__ __forceinline__ void Run(const Problem& problem, const TileWork& work, int k_tiles) {
    const int row = threadIdx.x % kWarpgroupThreads / 8;
    const int chunk = threadIdx.x % 8;
    const int x_tiles = problem.like().x_tiles;
    // From the thread's first row on. Past them stays what is there: MMAs keep tokens apart, and
    // copies of one row in all of their places would wait for one another in L2.
    const int rows = work.tokens - row;
    uint32_t offsets[kRowsOfThread];  // in 16 bytes
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const int token = work.first_token + min(row + i * kRowStep, work.tokens - 1);
      offsets[i] = problem.row_of(token) * static_cast<uint32_t>(problem.row_bytes() / 16) + chunk;
    }
    std::byte* const to = storage.stages + row * 128 + (chunk ^ row % 8) * 16;
    int x_tile = 0;
    for (int tile = 0; tile < k_tiles; tile += kSliceTiles) {
      for (int u = 0; u < kSliceTiles; ++u) {
        const int stage = at.slot;
        ptx::BarrierWait(storage.free + stage, at.phase ^ 1);
        at.Advance();
        if (tile + u < k_tiles) {
          const std::byte* from = problem.rows() + x_tile * (kTileColumns * 2);
#pragma unroll
          for (int i = 0; i < kRowsOfThread; ++i) {
            if (i * kRowStep >= rows) break;
            ptx::CopyAsync16(to + stage * Shape::kStageBytes + i * (kRowStep * 128),
                             from + int64_t{offsets[i]} * 16);
          }
          if (++x_tile == x_tiles) x_tile = 0;
        }
        ptx::CommitCopies();
        if (++started >= kInFlight) {
          ptx::WaitForCopies<kInFlight - 1>();
          HandOn();
        }
      }
    }
  }
  __device__ __forceinline__ void Finish() {
    ptx::WaitForCopies<0>();
    while (handed_on < started) HandOn();
  }
  __device__ __forceinline__ void HandOn() {
    ptx::FenceAsyncProxy();
    ptx::BarrierArrive(storage.full + handed_on++ % Shape::kStages);
  }
};

// Named barriers at which a warpgroup's outputs are handed to the warp that stores them, and their
// place in shared memory back.
inline constexpr int kStagedBarrier = 6;  // and 7
inline constexpr int kStoredBarrier = 8;  // and 9
inline constexpr int kHandOverThreads = kWarpgroupThreads + 32;

// A warp that stores a consumer's BF16 outputs while that is at its next tile: of all tiles but
// the last.
template <typename Shape, typename Problem>
__device__ __forceinline__ void StoreTiles(const TileStorage<Shape>& storage,
                                           const Problem& problem, int consumer) {
  static_assert(Shape::kConsumers == 2);
  const auto& out = problem.output();
  if (out.y_f32 != nullptr) return;
  const std::byte* const staging = storage.outputs + consumer * Shape::kStagingBytes;
  ptx::ArriveThreads(kStoredBarrier + consumer, kHandOverThreads);
  const int count = problem.count();
  for (int i = blockIdx.x; i + static_cast<int>(gridDim.x) < count; i += gridDim.x) {
    const TilePlace place =
        PlaceOf<Shape::kN>(problem.At(i), consumer % Shape::kParts, consumer / Shape::kParts);
    ptx::SyncThreads(kStagedBarrier + consumer, kHandOverThreads);
    StoreStaged<Shape::kN, 32>(out, place, staging);
    ptx::ArriveThreads(kStoredBarrier + consumer, kHandOverThreads);
  }
}

#endif  // NIBBLE_HAVE_WGMMA

}  // namespace nibble::kernels::cuda
