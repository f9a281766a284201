// What the producer and the consumers of the prefill kernel share.
//
// Shared memory holds a leaf as tiles of 64 dimensions: 64 rows (keys) of 128 bytes in the 128-byte
// swizzle, which wgmma reads as B for the scores and, transposed, for the values.
#pragma once

#include "kernels/cuda/attention/attention_order.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

inline constexpr int kMaxBoxKeys = kLeafKeys;  // of a tensor copy

template <KvFormat kFormat, int kDim>
struct PrefillShared {
  static constexpr bool kFp8 = kFormat == KvFormat::kFp8;
  static constexpr bool kNvfp4 = kFormat == KvFormat::kNvfp4;
  static constexpr bool kShareRows = kDim > 128;  // and split the values' dimensions
  static constexpr int kTileRows = kShareRows ? 64 : 128;
  static constexpr int kValueDims = kShareRows ? kDim / 2 : kDim;  // of a warpgroup
  static constexpr int kLeafBytes = kLeafKeys * kDim * 2;
  static constexpr int kPieceBytes = kLeafKeys * 128;  // 64 dimensions of a leaf

  // Slots have a leaf's keys or values; stages have the same as codes, on their way to a slot. What
  // is on its way from memory has to cover its latency.
  static constexpr int kSlots = kFp8     ? (kShareRows ? 4 : 6)
                                : kNvfp4 ? (kShareRows ? 4 : 8)
                                         : (kShareRows ? 6 : 12);
  static constexpr int kStages = kFp8 ? (kShareRows ? 4 : 12) : kNvfp4 && !kShareRows ? 3 : 0;
  static constexpr int kStageBytes = kLeafKeys * kDim;
  static constexpr int kStageBarriers = kFp8 ? kStages : 0;  // NVFP4: a thread copies for itself

  uint8_t ring[kSlots][kLeafBytes];
  uint8_t queries[kShareRows ? kLeafBytes : 16];  // as a leaf; else they are in registers
  alignas(128) uint8_t stages[kStages > 0 ? kStages : 1][kStages > 0 ? kStageBytes : 16];
  uint64_t filled[kSlots];
  uint64_t freed[kSlots];
  uint64_t stage_filled[kFp8 ? kStageBarriers : 1];
  uint64_t stage_freed[kFp8 ? kStageBarriers : 1];
  uint64_t edge;  // a leaf of values of which some become zeros

  static constexpr int kArrivals = kNvfp4 ? 128 : 4;  // at `filled`: of threads or of warps

  // Registers of a thread: two parts consumers and one part producers share 3 * 168, what threads
  // start with.
  static constexpr int kProducerRegisters = kFp8 ? 40 : !kNvfp4 ? 24 : kShareRows ? 56 : 40;
  static constexpr int kConsumerRegisters = (3 * 168 - kProducerRegisters) / 2;
  static_assert(kConsumerRegisters % 8 == 0);
};

// 16-byte chunk `chunk` of row `row` of a leaf of BF16.
__device__ __forceinline__ uint8_t* LeafChunk(uint8_t* leaf, int row, int chunk) {
  return leaf + chunk / 8 * (kLeafKeys * 128) + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
}

#ifdef NIBBLE_HAVE_WGMMA

// A place in the ring and the parity of its phase.
template <int kSlots>
struct RingCursor {
  int slot = 0;
  int parity = 0;

  __device__ __forceinline__ void Advance() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

#endif  // NIBBLE_HAVE_WGMMA

}  // namespace nibble::kernels::cuda
