// Slices of a weight on their way to one warp of the kernels for one token, each in a stage of
// shared memory. A slice is one bulk copy where there are such copies: no thread waits until its
// loads are taken, as it does when memory is busy, and a neighbour's loads do not stand behind
// them. Elsewhere it is copies of the lanes (cp.async), in groups that the caller commits.
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"

namespace nibble::kernels::cuda {

// Bytes of a whole slice of a row tile, in memory and in a stage: k-tiles, then scales.
constexpr int WholeSliceBytes(TileFormat format) {
  return kSliceTiles * CodeBytes(format) + ScaleBytes(format, 0);
}

// Starts the lanes' copies of a slice of `tiles` k-tiles to a stage; the caller commits. Scales lie
// behind room for four k-tiles, in memory behind those that are there.
template <TileFormat kFormat>
__device__ __forceinline__ void CopySliceByLanes(uint32_t stage, const std::byte* slice, int tiles,
                                                 int lane) {
  constexpr int kCodes = CodeBytes(kFormat), kVectors = kCodes / 512;  // of a k-tile; of a lane
  constexpr int kScaleVectors = ScaleBytes(kFormat, 0) / 16;
  static_assert(kCodes % 512 == 0 && kScaleVectors <= 32);
  const uint32_t to = stage + lane * 16;
  const std::byte* from = slice + lane * 16;
  if (tiles == kSliceTiles) {
#pragma unroll
    for (int i = 0; i < kSliceTiles * kVectors; ++i)
      ptx::CopyAsync16To(to + i * 512, from + i * 512);
  } else {
#pragma unroll 1
    for (int i = 0; i < tiles * kVectors; ++i) ptx::CopyAsync16To(to + i * 512, from + i * 512);
  }
  if (lane < kScaleVectors) ptx::CopyAsync16To(to + kSliceTiles * kCodes, from + tiles * kCodes);
}

template <TileFormat kFormat, int kStages>
class WarpStages {
 public:
  // barriers: (kStages) of this warp, in shared memory. By whole warps, as all of this.
  __device__ __forceinline__ WarpStages(uint64_t* barriers, int lane) {
#if __CUDA_ARCH__ >= 900
    first_barrier_ = ptx::SharedAddress(barriers);
    if (lane < kStages) ptx::BarrierInit(barriers + lane, 1);
    ptx::FenceBarrierInit();
    __syncwarp();
#endif
  }

  // Asks for a slice of `tiles` k-tiles, up to four, which lies there as CopySliceByLanes leaves
  // it. stage: its address in shared memory.
  __device__ __forceinline__ void Request(int index, uint32_t stage, const std::byte* slice,
                                          int tiles, int lane) const {
#if __CUDA_ARCH__ >= 900
    constexpr int kCodes = CodeBytes(kFormat), kScales = ScaleBytes(kFormat, 0);
    const uint32_t barrier = first_barrier_ + index * 8;
    if (kScales == 0 || tiles == kSliceTiles) {
      ptx::BulkCopyOfWarp(stage, slice, tiles * kCodes + kScales, barrier);
    } else {
      ptx::BulkCopiesOfWarp(stage, slice, tiles * kCodes, stage + kSliceTiles * kCodes, kScales,
                            barrier);
    }
#else
    CopySliceByLanes<kFormat>(stage, slice, tiles, lane);
#endif
  }

  // Until the stage's slice is there. parity: 0 for the first that was asked for there, then 1, 0,
  // … kLater: groups that were committed behind its own.
  template <int kLater>
  __device__ __forceinline__ void Wait(int index, uint32_t parity) const {
#if __CUDA_ARCH__ >= 900
    ptx::BarrierWaitAt(first_barrier_ + index * 8, parity);
#else
    ptx::WaitForCopies<kLater>();
#endif
    __syncwarp();
  }

  // Once stages have been read, before they are asked for again.
  __device__ __forceinline__ static void Free() {
#if __CUDA_ARCH__ >= 900
    ptx::FenceAsyncProxy();
#endif
    __syncwarp();
  }

 private:
#if __CUDA_ARCH__ >= 900
  uint32_t first_barrier_;
#endif
};

}  // namespace nibble::kernels::cuda
