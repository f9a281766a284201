// A warp's own weights in shared memory: slices of row tiles, each a place, filled by the warp's
// lanes with cp.async. A k-tile that has been read is replaced by that of the slice which comes
// into its place next. Which slices come is up to whoever owns the ring:
//
//   ring.ReadFrom(slice, k_tiles_left);           // of the place to fill
//   ring.Wait(); decode ring.Codes(u, v), ring.scales(); ring.Fill(u);    // u = 0..3
//   ring.NextPlace();
#pragma once

#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/cuda/ptx/async_copy.cuh"

namespace nibble::kernels::cuda {

template <TileFormat kFormat>
struct SliceRing {
  static constexpr int kCodeBytes = CodeBytes(kFormat);
  static constexpr int kScaleBytes = ScaleBytes(kFormat, kSliceColumns);
  static constexpr int kSliceBytes = kSliceTiles * kCodeBytes + kScaleBytes;
  static constexpr int kPlaces = kCodeBytes > 512 ? 1 : 2;
  static constexpr int kTiles = kPlaces * kSliceTiles;
  static constexpr int kBytes = kPlaces * kSliceBytes;

  std::byte* at;                    // the lane's bytes of the place to read and to fill
  const std::byte* from = nullptr;  // and of the slice to fill it with
  int left = 0;  // k-tiles of the row tile from that slice on; none: nothing to fill
  int place = 0;

  __device__ __forceinline__ explicit SliceRing(std::byte* memory)
      : at(memory + threadIdx.x % 32 * 16) {}

  __device__ __forceinline__ void ReadFrom(const std::byte* slice, int k_tiles_left) {
    from = slice + threadIdx.x % 32 * 16;
    left = k_tiles_left;
  }
  // By some slices of the row tile.
  __device__ __forceinline__ void SkipSlices(int count) {
    from += count * kSliceBytes;
    left -= count * kSliceTiles;
  }
  // Vector v of the lane's codes of k-tile u.
  __device__ __forceinline__ uint4 Codes(int u, int v) const {
    return *reinterpret_cast<const uint4*>(at + u * kCodeBytes + v * 512);
  }
  __device__ __forceinline__ const std::byte* scales() const {
    return at + kSliceTiles * kCodeBytes - threadIdx.x % 32 * 16;
  }

  // Before k-tile u of the place is read, and before its scales are.
  __device__ __forceinline__ void Wait() const {
    ptx::WaitForCopies<kTiles - 1>();
    __syncwarp();
  }
  // After that.
  __device__ __forceinline__ void Fill(int u) const {
    if (u < left) {
#pragma unroll
      for (int v = 0; v < kCodeBytes / 512; ++v) {
        const int offset = u * kCodeBytes + v * 512;
        ptx::CopyAsync16(at + offset, from + offset);
      }
    }
    if (kScaleBytes > 0 && u == 0 && left > 0 && threadIdx.x % 32 * 16 < kScaleBytes) {
      ptx::CopyAsync16(at + kSliceTiles * kCodeBytes, from + min(kSliceTiles, left) * kCodeBytes);
    }
    ptx::CommitCopies();
  }
  // Or, of formats with two places, slice by slice: before a place is read,
  __device__ __forceinline__ void WaitForSlice() const {
    ptx::WaitForCopies<kPlaces - 1>();
    __syncwarp();
  }
  // and after all of it has been.
  __device__ __forceinline__ void FillSlice() const {
    if (left >= kSliceTiles) {
      CopySlice(kSliceTiles);
    } else if (left > 0) {
      CopySlice(left);
    }
    ptx::CommitCopies();
  }
  __device__ __forceinline__ void CopySlice(int tiles) const {
#pragma unroll
    for (int v = 0; v < kSliceTiles * kCodeBytes / 512; ++v)
      if (v * 512 < tiles * kCodeBytes) ptx::CopyAsync16(at + v * 512, from + v * 512);
    if (threadIdx.x % 32 * 16 < kScaleBytes)
      ptx::CopyAsync16(at + kSliceTiles * kCodeBytes, from + tiles * kCodeBytes);
  }
  __device__ __forceinline__ void NextPlace() {
    if constexpr (kPlaces == 1) return;
    static_assert(kPlaces <= 2);
    at += place == 0 ? kSliceBytes : -kSliceBytes;
    place ^= 1;
  }
};

}  // namespace nibble::kernels::cuda
