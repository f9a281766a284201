// Producers of the prefill kernel that ask for boxes of the cache.
#pragma once

#include <cuda.h>

#include "kernels/cuda/attention/attention_problem.cuh"
#include "kernels/cuda/attention/prefill_shared.cuh"
#include "kernels/cuda/ptx/tensor_copy.cuh"

namespace nibble::kernels::cuda {

struct PrefillMaps {  // CacheMap's
  CUtensorMap k;
  CUtensorMap v;
};

#ifdef NIBBLE_HAVE_WGMMA

// The boxes of a tile's leaves: a leaf has up to four, of 16 keys or more, and each warp of the
// warpgroup asks for one.
template <int kBoxBytes>  // of a row of a box
struct LeafBoxes {
  const AttentionProblem& p;
  const AttentionTile& tile;
  int kv_head;
  KeyRange keys;
  int box_keys;   // a page's, a leaf's at most
  int first_row;  // of this warp's box, in a leaf; beyond it: the warp has none

  __device__ __forceinline__ LeafBoxes(const AttentionProblem& problem, const AttentionTile& t,
                                       int head, KeyRange seen)
      : p(problem), tile(t), kv_head(head), keys(seen) {
    box_keys = min(1 << p.page_shift, kMaxBoxKeys);
    first_row = Warp() * box_keys;
  }

  __device__ __forceinline__ static int Warp() {
    return __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 32, 0);
  }

  // Of the leaf's n-th box. Any page that exists where no key is seen.
  __device__ __forceinline__ int32_t PageOf(int leaf, int n) const {
    const int seen = min(max(leaf * kLeafKeys + n * box_keys, keys.first), keys.last);
    return p.page_table[tile.sequence * p.max_pages + (seen >> p.page_shift)];
  }

  // page: of the warp's box. Boxes side by side go to tiles `tile_bytes` apart. Of the barrier each
  // warp is one arrival.
  template <int kTiles>
  __device__ __forceinline__ void Ask(const CUtensorMap& map, int32_t page, int leaf, uint8_t* to,
                                      int tile_bytes, uint64_t* barrier) const {
    const bool mine = threadIdx.x % 32 == 0;
    const bool has_box = first_row < kLeafKeys;
    ptx::BarrierExpectIf(mine, barrier, has_box ? kTiles * box_keys * kBoxBytes : 0);
    if (!has_box) return;
    const int place = (leaf * kLeafKeys + first_row) & ((1 << p.page_shift) - 1);
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      ptx::TensorCopyIf(mine, to + i * tile_bytes + first_row * kBoxBytes, map, i * 64, place,
                        page * p.kv_heads + kv_head, barrier);
  }

  __device__ __forceinline__ bool IsSeen(int key) const {
    return key >= keys.first && key <= keys.last;
  }
  __device__ __forceinline__ bool AllSeen(int leaf) const {
    return IsSeen(leaf * kLeafKeys) && IsSeen(leaf * kLeafKeys + kLeafKeys - 1);
  }
};

// BF16: boxes come as wgmma reads them.
template <int kDim>
struct Bf16Producer {
  using Shared = PrefillShared<KvFormat::kBf16, kDim>;

  Shared& shared;
  const PrefillMaps& maps;
  LeafBoxes<128> boxes;

  __device__ __forceinline__ void Run(int first_leaf, int last_leaf) const {
    RingCursor<Shared::kSlots> to;
    int edge_parity = 0;
    int32_t page = boxes.PageOf(first_leaf, boxes.Warp());
    for (int leaf = first_leaf; leaf <= last_leaf; ++leaf) {
      const int32_t next_page = boxes.PageOf(leaf + 1, boxes.Warp());
#pragma unroll
      for (int kind = 0; kind < 2; ++kind) {
        ptx::BarrierWait(&shared.freed[to.slot], to.parity ^ 1);
        uint8_t* const ring = shared.ring[to.slot];
        const bool is_edge = kind == 1 && !boxes.AllSeen(leaf);
        boxes.template Ask<kDim / 64>(kind == 0 ? maps.k : maps.v, page, leaf, ring,
                                      Shared::kPieceBytes,
                                      is_edge ? &shared.edge : &shared.filled[to.slot]);
        if (is_edge) {
          ptx::BarrierWait(&shared.edge, edge_parity);
          edge_parity ^= 1;
          ClearUnseen(ring, leaf);
          ptx::FenceAsyncProxy();
          __syncwarp();
          if (threadIdx.x % 32 == 0) ptx::BarrierArrive(&shared.filled[to.slot]);
        }
        to.Advance();
      }
      page = next_page;
    }
  }

  // Weights of unseen keys are 0, but what lies there may be NaN.
  __device__ __forceinline__ void ClearUnseen(uint8_t* ring, int leaf) const {
    for (int i = threadIdx.x; i < kLeafKeys * kDim / 8; i += 128) {
      const int row = i / (kDim / 8);
      if (!boxes.IsSeen(leaf * kLeafKeys + row))
        *reinterpret_cast<uint4*>(LeafChunk(ring, row, i % (kDim / 8))) = {0, 0, 0, 0};
    }
  }
};

// FP8: codes come into stages, and the warpgroup widens them into the ring.
template <int kDim>
struct Fp8Producer {
  using Shared = PrefillShared<KvFormat::kFp8, kDim>;
  static constexpr int kPieces = kDim / 16;  // of a row: atoms of 16 dimensions
  static constexpr int kRowsPerPass = 128 / kPieces;
  static constexpr int kPasses = kLeafKeys / kRowsPerPass;

  Shared& shared;
  const PrefillMaps& maps;
  LeafBoxes<kDim> boxes;

  static constexpr int kLeavesAhead = Shared::kStages / 2 - 1;  // of the one that is widened

  __device__ __forceinline__ void Run(int first_leaf, int last_leaf) const {
    RingCursor<Shared::kSlots> to;
    RingCursor<Shared::kStages> from, ahead;
    // Lane n has the page of box n: what is the same for all lanes the compiler wants in a register
    // of the warp at once, and waits for it.
    const auto pages_of = [&](int leaf) {
      return boxes.PageOf(leaf, static_cast<int>(threadIdx.x) % 32);
    };
    const auto ask = [&](int leaf, int32_t pages) {
      if (leaf > last_leaf) return;
      const int32_t page = __shfl_sync(0xffffffff, pages, boxes.Warp());
#pragma unroll
      for (int kind = 0; kind < 2; ++kind) {
        ptx::BarrierWait(&shared.stage_freed[ahead.slot], ahead.parity ^ 1);
        boxes.template Ask<1>(kind == 0 ? maps.k : maps.v, page, leaf, shared.stages[ahead.slot], 0,
                              &shared.stage_filled[ahead.slot]);
        ahead.Advance();
      }
    };
#pragma unroll 1
    for (int i = 0; i < kLeavesAhead; ++i) ask(first_leaf + i, pages_of(first_leaf + i));
    int32_t pages = pages_of(first_leaf + kLeavesAhead);
    for (int leaf = first_leaf; leaf <= last_leaf; ++leaf) {
      // Into the stages that were widened last: the other warps have had time to do so, too.
      ask(leaf + kLeavesAhead, pages);
      pages = pages_of(leaf + kLeavesAhead + 1);
      const bool all_seen = boxes.AllSeen(leaf);
#pragma unroll
      for (int kind = 0; kind < 2; ++kind) {
        ptx::BarrierWait(&shared.stage_filled[from.slot], from.parity);
        ptx::BarrierWait(&shared.freed[to.slot], to.parity ^ 1);
        if (all_seen) {
          Widen<true>(shared.ring[to.slot], shared.stages[from.slot], leaf);
        } else {
          Widen<false>(shared.ring[to.slot], shared.stages[from.slot], leaf);
        }
        ptx::FenceAsyncProxy();
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
          ptx::BarrierArrive(&shared.filled[to.slot]);
          ptx::BarrierArrive(&shared.stage_freed[from.slot]);
        }
        to.Advance();
        from.Advance();
      }
    }
  }

  // Unseen keys become zeros.
  template <bool kAllSeen>
  __device__ __forceinline__ void Widen(uint8_t* to, const uint8_t* stage, int leaf) const {
    const auto* from = reinterpret_cast<const uint4*>(stage) + threadIdx.x;
    constexpr int kBatch = kPasses < 4 ? kPasses : 4;  // loads under way
#pragma unroll
    for (int first = 0; first < kPasses; first += kBatch) {
      uint4 codes[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) codes[i] = from[(first + i) * 128];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = static_cast<int>(threadIdx.x) / kPieces + (first + i) * kRowsPerPass;
        if (!kAllSeen && !boxes.IsSeen(leaf * kLeafKeys + row)) codes[i] = {0, 0, 0, 0};
        StoreWidened(to, row, codes[i]);
      }
    }
  }

  // In the order of E4M3Slot.
  __device__ __forceinline__ static void StoreWidened(uint8_t* to, int row, uint4 c) {
    const int piece = threadIdx.x % kPieces;
    *reinterpret_cast<uint4*>(LeafChunk(to, row, piece * 2)) = {E4M3Even(c.x), E4M3Even(c.y),
                                                                E4M3Even(c.z), E4M3Even(c.w)};
    *reinterpret_cast<uint4*>(LeafChunk(to, row, piece * 2 + 1)) = {E4M3Odd(c.x), E4M3Odd(c.y),
                                                                    E4M3Odd(c.z), E4M3Odd(c.w)};
  }
};

#endif  // NIBBLE_HAVE_WGMMA

}  // namespace nibble::kernels::cuda
