// The producer of an NVFP4 cache for the prefill kernel.
#pragma once

#include "kernels/cuda/attention/attention_problem.cuh"
#include "kernels/cuda/attention/nvfp4_block.cuh"
#include "kernels/cuda/attention/prefill_shared.cuh"
#include "kernels/cuda/ptx/copy_parts.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"

namespace nibble::kernels::cuda {

#ifdef NIBBLE_HAVE_WGMMA

// Thread t copies piece t mod kPieces of every kRowsPerPass-th row and widens it to BF16.
template <int kDim>
struct Nvfp4Producer {
  using Shared = PrefillShared<KvFormat::kNvfp4, kDim>;
  static constexpr int kRowBytes = kDim / 2;  // of codes
  static constexpr int kPieces = kRowBytes / 16;
  static constexpr int kRowsPerPass = 128 / kPieces;
  static constexpr int kPasses = kLeafKeys / kRowsPerPass;
  static constexpr int kRunsPerLeaf = kLeafKeys / 16;

  const AttentionProblem& p;
  Shared& shared;
  const AttentionTile& tile;
  int kv_head;
  KeyRange keys;

  struct Pages {
    int32_t of_run[kRunsPerLeaf];  // 16 neighbouring keys lie in one page
  };

  __device__ __forceinline__ Pages PagesOf(int leaf) const {
    Pages pages;
#pragma unroll
    for (int run = 0; run < kRunsPerLeaf; ++run) {
      const int key = min(max(leaf * kLeafKeys + run * 16, keys.first), keys.last);
      pages.of_run[run] = p.page_table[tile.sequence * p.max_pages + (key >> p.page_shift)];
    }
    return pages;
  }

  __device__ __forceinline__ static int RowOfPass(int pass) {
    return threadIdx.x / kPieces + pass * kRowsPerPass;
  }

  __device__ __forceinline__ static int32_t PageOfPass(const Pages& pages, int pass) {
    int32_t page = pages.of_run[pass * kRowsPerPass / 16];
#pragma unroll
    for (int run = 1; run < kRowsPerPass / 16; ++run)
      if (threadIdx.x / kPieces >= run * 16) page = pages.of_run[pass * kRowsPerPass / 16 + run];
    return page;
  }

  __device__ __forceinline__ bool IsSeen(int key) const {
    return key >= keys.first && key <= keys.last;
  }

  __device__ __forceinline__ void Run(int first_leaf, int last_leaf) const {
    if constexpr (Shared::kStages > 0) {
      RunStaged(first_leaf, last_leaf);
    } else {
      RunThroughRegisters(first_leaf, last_leaf);
    }
  }

  // A piece of 16 bytes of codes, with the scales of its two blocks.
  struct Codes {
    uint4 piece;
    uint32_t scales;
  };

  // Where the thread's piece of a pass and the four scales that hold its two lie.
  struct Place {
    const uint8_t* piece;
    const uint8_t* scales;
  };
  static constexpr int kScales = kDim / 16;  // of a row

  __device__ __forceinline__ Place PlaceOf(const uint8_t* cache, const Pages& pages, int leaf,
                                           int pass) const {
    const int piece = threadIdx.x % kPieces;
    const uint8_t* page =
        cache + ((int64_t{PageOfPass(pages, pass)} * p.kv_heads + kv_head) << p.page_shift) *
                    (kRowBytes + kScales);
    const int row = (leaf * kLeafKeys + RowOfPass(pass)) & ((1 << p.page_shift) - 1);
    return {page + row * kRowBytes + piece * 16,
            page + (kRowBytes << p.page_shift) + row * kScales + piece / 2 * 4};
  }

  // In the order of Nvfp4Slot. c.scales: as they lie in memory.
  __device__ __forceinline__ static void StoreWidened(uint8_t* to, int row, const Codes& c) {
    const int piece = threadIdx.x % kPieces;
    const auto chunk = [&](int i) { return reinterpret_cast<uint4*>(LeafChunk(to, row, i)); };
    const uint4 x = c.piece;
    const uint32_t scales = Nvfp4Scales(__byte_perm(c.scales, 0, piece % 2 == 0 ? 0x1404 : 0x3424));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint4 widened[2];
      WidenNvfp4Block(i == 0 ? uint2{x.x, x.y} : uint2{x.z, x.w}, scales, i, widened);
      *chunk(piece * 4 + i * 2) = widened[0];
      *chunk(piece * 4 + i * 2 + 1) = widened[1];
    }
  }

  // Codes are copied ahead into places of shared memory, which a thread fills and reads alone, and
  // are widened on their way into the ring.
  __device__ __forceinline__ void RunStaged(int first_leaf, int last_leaf) const {
    RingCursor<Shared::kSlots> to;
    const int units = 2 * (last_leaf - first_leaf + 1);  // keys, values, keys, ...
    Pages pages = PagesOf(first_leaf);
    Pages next_pages = pages;
    const auto copy_ahead = [&](int unit) {
      if (unit < units) {
        const int leaf = first_leaf + unit / 2;
        if (unit % 2 == 0) {
          pages = next_pages;
          next_pages = PagesOf(leaf + 1);
        }
        CopyCodes(StageOf(unit), unit % 2 == 0 ? p.k : p.v, pages, leaf);
      }
      ptx::CommitCopies();
    };
    for (int unit = 0; unit < Shared::kStages; ++unit) copy_ahead(unit);
    for (int unit = 0; unit < units; ++unit) {
      ptx::WaitForCopies<Shared::kStages - 1>();
      ptx::BarrierWait(&shared.freed[to.slot], to.parity ^ 1);
      const uint8_t* from = StageOf(unit);
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const Codes codes = {*reinterpret_cast<const uint4*>(PieceIn(from, pass)),
                             *reinterpret_cast<const uint32_t*>(ScalesIn(from, pass))};
        StoreWidened(shared.ring[to.slot], RowOfPass(pass), codes);
      }
      ptx::BarrierArrive(&shared.filled[to.slot]);
      to.Advance();
      copy_ahead(unit + Shared::kStages);
    }
  }
  __device__ __forceinline__ uint8_t* StageOf(int unit) const {
    return shared.stages[unit % Shared::kStages];
  }
  // What this thread has of a stage: pieces of all passes, then their scales.
  template <typename Byte>
  __device__ __forceinline__ static Byte* PieceIn(Byte* stage, int pass) {
    return stage + (pass * 128 + threadIdx.x) * 16;
  }
  template <typename Byte>
  __device__ __forceinline__ static Byte* ScalesIn(Byte* stage, int pass) {
    return stage + kPasses * 128 * 16 + (pass * 128 + threadIdx.x) * 4;
  }
  static_assert(Shared::kStages == 0 || kPasses * 128 * 20 <= Shared::kStageBytes);

  __device__ __forceinline__ void CopyCodes(uint8_t* stage, const uint8_t* cache,
                                            const Pages& pages, int leaf) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const Place from = PlaceOf(cache, pages, leaf, pass);
      ptx::CopyAsync16OrZero(PieceIn(stage, pass), from.piece,
                             IsSeen(leaf * kLeafKeys + RowOfPass(pass)));
      ptx::CopyAsync4(ScalesIn(stage, pass), from.scales);
    }
  }

  // Without room for that they go through registers, a batch of rows at a time; the next batch is
  // loaded while the present one is widened.
  static constexpr int kBatch = kPasses < 2 ? kPasses : 2;
  static constexpr int kBatches = kPasses / kBatch;
  struct Batch {
    Codes of_pass[kBatch];
  };

  __device__ __forceinline__ void RunThroughRegisters(int first_leaf, int last_leaf) const {
    RingCursor<Shared::kSlots> to;
    Pages pages = PagesOf(first_leaf);
    Batch codes = LoadCodes(p.k, pages, first_leaf, 0);
    for (int leaf = first_leaf; leaf <= last_leaf; ++leaf) {
      const Pages next_pages = leaf < last_leaf ? PagesOf(leaf + 1) : pages;
#pragma unroll
      for (int kind = 0; kind < 2; ++kind) {
#pragma unroll
        for (int batch = 0; batch < kBatches; ++batch) {
          Batch next = codes;
          if (batch + 1 < kBatches) {
            next = LoadCodes(kind == 0 ? p.k : p.v, pages, leaf, batch + 1);
          } else if (kind == 0) {
            next = LoadCodes(p.v, pages, leaf, 0);
          } else if (leaf < last_leaf) {
            next = LoadCodes(p.k, next_pages, leaf + 1, 0);
          }
          if (batch == 0) ptx::BarrierWait(&shared.freed[to.slot], to.parity ^ 1);
          StoreCodes(shared.ring[to.slot], codes, batch);
          codes = next;
        }
        ptx::BarrierArrive(&shared.filled[to.slot]);
        to.Advance();
      }
      pages = next_pages;
    }
  }

  __device__ __forceinline__ Batch LoadCodes(const uint8_t* cache, const Pages& pages, int leaf,
                                             int batch) const {
    Batch codes;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int pass = batch * kBatch + i;
      codes.of_pass[i] = {};
      if (IsSeen(leaf * kLeafKeys + RowOfPass(pass))) {
        const Place from = PlaceOf(cache, pages, leaf, pass);
        codes.of_pass[i].piece = *reinterpret_cast<const uint4*>(from.piece);
        codes.of_pass[i].scales = *reinterpret_cast<const uint32_t*>(from.scales);
      }
    }
    return codes;
  }

  __device__ __forceinline__ static void StoreCodes(uint8_t* to, const Batch& codes, int batch) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      StoreWidened(to, RowOfPass(batch * kBatch + i), codes.of_pass[i]);
  }
};

#endif  // NIBBLE_HAVE_WGMMA

}  // namespace nibble::kernels::cuda
