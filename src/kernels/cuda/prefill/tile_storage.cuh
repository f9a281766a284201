// The shared memory of a CTA of tile_product.cuh, and the rings in it.
#pragma once

#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace nibble::kernels::cuda {

// Works whose row tiles a warp knows.
inline constexpr int kKnownWorks = 4;

constexpr int RowTilesBytes(int consumers) { return consumers * 4 * kKnownWorks * 8; }

#ifdef NIBBLE_HAVE_WGMMA

// A place in a ring of kStages, and the parity of its turn.
template <int kStages>
struct RingPosition {
  int slot = 0;
  uint32_t phase = 0;

  // By a divisor of kStages, always the same.
  __device__ __forceinline__ void Advance(int by = 1) {
    slot += by;
    if (slot == kStages) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// The CTA's shared memory.
template <typename Shape>
struct TileStorage {
  std::byte* stages;   // of tokens, 1024-byte aligned
  std::byte* weights;  // (consumer warps, kWarpBytes): codes of slices, then scales
  std::byte* outputs;
  const std::byte** row_tiles;  // (consumer warps, kKnownWorks)
  uint64_t* full;
  uint64_t* free;
  std::byte* raw_tokens;  // (kRawRows) of kRawRowBytes, where a shape has room for them

  __device__ __forceinline__ explicit TileStorage(std::byte* memory) {
    stages = memory + (1024 - ptx::SharedAddress(memory) % 1024) % 1024;
    weights = stages + Shape::kStages * Shape::kStageBytes;
    outputs = weights + Shape::kWeightBytes;
    row_tiles = reinterpret_cast<const std::byte**>(outputs + Shape::kOutputBytes);
    full = reinterpret_cast<uint64_t*>(row_tiles + Shape::kConsumers * 4 * kKnownWorks);
    free = full + Shape::kStages;
    raw_tokens = reinterpret_cast<std::byte*>(free + Shape::kStages);
  }

  // By all threads. `producers`: threads that fill a stage.
  __device__ __forceinline__ void Init(int producers) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Shape::kStages; ++i) {
        ptx::BarrierInit(full + i, producers);
        ptx::BarrierInit(free + i, Shape::kConsumers * 4);
      }
      ptx::FenceBarrierInit();
    }
    __syncthreads();
  }
};

#endif  // NIBBLE_HAVE_WGMMA

}  // namespace nibble::kernels::cuda
