// The prefill kernel of Hopper: a CTA takes a tile of query rows and all of the tile's keys.
//
// Warpgroup 0 brings leaves of keys and values into a ring of shared memory; two warpgroups do the
// rest by wgmma. The scores of the next leaf and P V are queued together, and the softmax of the
// next leaf runs while P V does, and while the other warpgroup multiplies. Up to a head dimension
// of 128 each has 64 of 128 rows; beyond, where o and the group's o would not fit, the same 64 rows
// and half of the values' dimensions each. The order of sums is attention_order.cuh's, the bits are
// the split kernel's.
#pragma once

#include "kernels/cuda/attention/leaf_softmax.cuh"
#include "kernels/cuda/attention/nvfp4_producer.cuh"
#include "kernels/cuda/attention/prefill_shared.cuh"
#include "kernels/cuda/attention/tensor_producer.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kPrefillThreads = 384;

#ifdef NIBBLE_HAVE_WGMMA

// A warpgroup with 64 rows; a thread has rows g and g + 8 of its warp's 16.
template <KvFormat kFormat, int kDim>
struct PrefillConsumer {
  using Shared = PrefillShared<kFormat, kDim>;
  static constexpr bool kFp8 = kFormat == KvFormat::kFp8;
  static constexpr int kDimAtoms = kDim / 16;
  static constexpr int kOutputs = Shared::kValueDims / 2;
  static constexpr int kQueryAtoms = Shared::kShareRows ? 1 : kDimAtoms;  // in registers

  const AttentionProblem& p;
  Shared& shared;
  const AttentionTile& tile;
  int kv_head;
  int warpgroup;  // 0 or 1
  LeafSoftmax<kFp8> softmax;

  __device__ __forceinline__ PrefillConsumer(const AttentionProblem& problem, Shared& s,
                                             const AttentionTile& t, int head, int group)
      : p(problem),
        shared(s),
        tile(t),
        kv_head(head),
        warpgroup(group),
        softmax(problem, t,
                t.first_row + (Shared::kShareRows ? 0 : group * 64) +
                    static_cast<int>(threadIdx.x) % 128 / 32 * 16) {}

  __device__ __forceinline__ bool HasRow(int r) const { return softmax.HasRow(r); }
  __device__ __forceinline__ int64_t RowOffset(int r) const {
    const int token = softmax.row[r] / p.heads_per_kv;
    const int head = kv_head * p.heads_per_kv + softmax.row[r] - token * p.heads_per_kv;
    return (int64_t{tile.first_token + token} * p.q_heads + head) * kDim;
  }

  __device__ __forceinline__ static uint2 QueryWords(const uint16_t* atom) {
    if constexpr (kFormat == KvFormat::kNvfp4) return Nvfp4QueryFragment(atom);
    return QueryFragment<kFp8>(atom);
  }

  __device__ __forceinline__ void LoadQueries(uint32_t (&queries)[kQueryAtoms][4]) const {
#pragma unroll
    for (int a = 0; a < kDimAtoms; ++a) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint2 words = HasRow(r) ? QueryWords(p.q + RowOffset(r) + a * 16) : uint2{0, 0};
        if constexpr (Shared::kShareRows) {
          // Both warpgroups need all of them, and write the same.
          const int row_of_tile = softmax.row[r] - tile.first_row;
          const int at = threadIdx.x % 4 * 4;
          *reinterpret_cast<uint32_t*>(LeafChunk(shared.queries, row_of_tile, a * 2) + at) =
              words.x;
          *reinterpret_cast<uint32_t*>(LeafChunk(shared.queries, row_of_tile, a * 2 + 1) + at) =
              words.y;
        } else {
          queries[a][r] = words.x;
          queries[a][2 + r] = words.y;
        }
      }
    }
    if constexpr (Shared::kShareRows) {
      ptx::FenceAsyncProxy();
      ptx::SyncThreads(kQueriesBarrier, 256);
    }
  }

  // ---- Tensor cores ----

  static constexpr int kTurnBarrier = 1;  // and 2: of each warpgroup
  static constexpr int kQueriesBarrier = 3;

  // Work for the tensor cores is queued in turns, so that it does not interleave and one
  // warpgroup's softmax meets the other's products.
  __device__ __forceinline__ void WaitForTurn() const {
    ptx::SyncThreads(kTurnBarrier + warpgroup, 256);
  }
  __device__ __forceinline__ void PassTurn() const {
    ptx::ArriveThreads(kTurnBarrier + (warpgroup ^ 1), 256);
  }

  __device__ __forceinline__ void StartScores(float (&s)[32],
                                              const uint32_t (&queries)[kQueryAtoms][4],
                                              int slot) const {
    const uint64_t keys = ptx::WgmmaDescriptor(shared.ring[slot]);
    const uint64_t shared_queries = ptx::WgmmaDescriptor(shared.queries);
#pragma unroll
    for (int a = 0; a < kDimAtoms; ++a) {
      const int at = a / 4 * (Shared::kPieceBytes >> 4) + a % 4 * 2;
      if constexpr (Shared::kShareRows) {
        ptx::WgmmaBf16SharedA(s, shared_queries + at, keys + at, a > 0);
      } else {
        ptx::WgmmaBf16<64>(s, queries[a], keys + at, a > 0);
      }
    }
  }

  __device__ __forceinline__ void StartValues(float (&o)[kOutputs], const uint32_t (&weights)[4][4],
                                              int slot, bool accumulate) const {
    const int first_piece = Shared::kShareRows ? warpgroup * (Shared::kValueDims / 64) : 0;
    const uint64_t values = ptx::WgmmaDescriptorTransposed(
        shared.ring[slot] + first_piece * Shared::kPieceBytes, Shared::kPieceBytes);
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      ptx::WgmmaBf16Transposed<Shared::kValueDims>(o, weights[a], values + a * 128,
                                                   accumulate || a > 0);
    }
  }

  // ---- The run over all leaves ----

  // Until the leaf is there, for wgmma. The fence of NVFP4, whose codes are widened by ordinary
  // stores, stands here, as at the producer it would wait for the copies of later leaves.
  __device__ __forceinline__ void WaitForLeaf(const RingCursor<Shared::kSlots>& at) const {
    ptx::BarrierWait(&shared.filled[at.slot], at.parity);
    if constexpr (kFormat == KvFormat::kNvfp4) ptx::FenceAsyncProxy();
  }

  __device__ __forceinline__ void Free(int slot) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::BarrierArrive(&shared.freed[slot]);
  }

  __device__ __forceinline__ void Run(int first_leaf, int last_leaf) {
    uint32_t queries[kQueryAtoms][4];
    LoadQueries(queries);
    float total_of_thread[kOutputs];
    float* total = total_of_thread;
    asm volatile("" : "+l"(total));  // in local memory, as it is touched once in 4,096 keys
    float o[kOutputs], group_o[kOutputs], s[32];
    float m[2], l[2], group_m[2], group_l[2], total_m[2], total_l[2], rescale[2];
    Clear(m, l);
    Clear(group_m, group_l);
    Clear(total_m, total_l);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = group_o[i] = 0.0f;
    constexpr int kLeavesPerBlock = kBlockKeys / kLeafKeys;
    constexpr int kLeavesPerGroup = kGroupKeys / kLeafKeys;
    const int first_group = first_leaf / kLeavesPerGroup;

    RingCursor<Shared::kSlots> at;
    if (warpgroup == 1) PassTurn();  // the first is the other's
    WaitForLeaf(at);
    WaitForTurn();
    ptx::WgmmaFence();
    StartScores(s, queries, at.slot);
    ptx::WgmmaCommit();
    PassTurn();
    ptx::WgmmaWait<0>();
    ptx::WgmmaPin(s);
    Free(at.slot);
    at.Advance();
    softmax.WeighInPlace(s, m, l, rescale, first_leaf);
    bool block_begins = true;
    // P V of the leaf and, unless it is the last, the weights of the next one.
    const auto step = [&]<bool kLast>(int leaf) {
      uint32_t weights[4][4];
      softmax.Pack(s, weights);
      const RingCursor<Shared::kSlots> values = at;
      at.Advance();
      const int keys_slot = at.slot;
      WaitForLeaf(values);
      if constexpr (!kLast) WaitForLeaf(at);
      WaitForTurn();
      ptx::WgmmaPin(s);
      ptx::WgmmaPin(o);
      ptx::WgmmaPin(weights);
      ptx::WgmmaFence();
      if constexpr (!kLast) {
        StartScores(s, queries, keys_slot);
        ptx::WgmmaCommit();
        at.Advance();
      }
      StartValues(o, weights, values.slot, !block_begins);
      ptx::WgmmaCommit();
      PassTurn();

      block_begins = kLast || (leaf + 1) % kLeavesPerBlock == 0;
      const float block_m[2] = {m[0], m[1]};
      const float block_l[2] = {l[0], l[1]};
      if (block_begins) Clear(m, l);
      if constexpr (!kLast) {
        ptx::WgmmaWait<1>();
        ptx::WgmmaPin(s);
        Free(keys_slot);
        softmax.WeighInPlace(s, m, l, rescale, leaf + 1);
      }
      // Waited for in both branches: in front of them the compiler would wait before the weights.
      const auto finish_values = [&] {
        ptx::WgmmaWait<0>();
        ptx::WgmmaPin(o);
        ptx::WgmmaPin(weights);
        Free(values.slot);
      };
      if (!block_begins) {
        finish_values();
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) o[i] *= rescale[i / 2 % 2];
      } else {
        finish_values();
        const float sums[2] = {QuadSum(block_l[0]), QuadSum(block_l[1])};
        MergeInto(group_o, group_m, group_l, o, block_m, sums);
        if (kLast || (leaf + 1) % kLeavesPerGroup == 0) {
          MergeIntoTotal(group_o, group_m, group_l, total, total_m, total_l,
                         leaf / kLeavesPerGroup == first_group, kLast);
          Clear(group_m, group_l);
        }
      }
    };
    for (int leaf = first_leaf; leaf < last_leaf; ++leaf) step.template operator()<false>(leaf);
    step.template operator()<true>(last_leaf);
    WriteOutput(group_o, total_m, total_l);
  }

  __device__ __forceinline__ static void Clear(float (&m)[2], float (&l)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      m[r] = MinusInfinity();
      l[r] = 0.0f;
    }
  }

  __device__ __forceinline__ static void MergeInto(float (&o)[kOutputs], float (&m)[2],
                                                   float (&l)[2], const float (&from_o)[kOutputs],
                                                   const float (&from_m)[2],
                                                   const float (&from_l)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const MergeFactors factors = Merge(m[r], from_m[r]);
      l[r] = Merged(l[r], from_l[r], factors);
#pragma unroll
      for (int i = 2 * r; i < kOutputs; i += 4) {
        o[i] = Merged(o[i], from_o[i], factors);
        o[i + 1] = Merged(o[i + 1], from_o[i + 1], factors);
      }
    }
  }

  // In the end the total is in `o`.
  __device__ __forceinline__ void MergeIntoTotal(float (&o)[kOutputs], const float (&m)[2],
                                                 const float (&l)[2], float* total,
                                                 float (&total_m)[2], float (&total_l)[2],
                                                 bool first, bool last) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const MergeFactors factors = Merge(total_m[r], m[r]);
      total_l[r] = Merged(total_l[r], l[r], factors);
#pragma unroll
      for (int i = 2 * r; i < kOutputs; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float old = first ? 0.0f : total[i + e];
          const float merged = Merged(old, o[i + e], factors);
          if (!last) total[i + e] = merged;
          o[i + e] = last ? merged : 0.0f;
        }
      }
    }
  }

  __device__ __forceinline__ void WriteOutput(const float (&o)[kOutputs], const float (&m)[2],
                                              const float (&l)[2]) const {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!HasRow(r)) continue;
      const int head = kv_head * p.heads_per_kv + softmax.row[r] % p.heads_per_kv;
      const float factor =
          OutputFactor(m[r], l[r], p.sinks != nullptr ? p.sinks + head : nullptr, p.value_scale);
      uint16_t* out =
          p.out + RowOffset(r) + (Shared::kShareRows ? warpgroup * Shared::kValueDims : 0);
#pragma unroll
      for (int a = 0; a < Shared::kValueDims / 16; ++a) {
        // Columns 2q, 2q + 1 of both halves of the atom.
        uint16_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = ToBf16(o[a * 8 + i / 2 * 4 + 2 * r + i % 2] * factor);
        if constexpr (kFormat != KvFormat::kBf16) {
          const int four = kFp8 ? 4 * q : Nvfp4QuadDim(q);
          *reinterpret_cast<uint2*>(out + a * 16 + four) = {x[0] | uint32_t{x[2]} << 16,
                                                            x[1] | uint32_t{x[3]} << 16};
        } else {
          *reinterpret_cast<uint32_t*>(out + a * 16 + 2 * q) = x[0] | uint32_t{x[1]} << 16;
          *reinterpret_cast<uint32_t*>(out + a * 16 + 2 * q + 8) = x[2] | uint32_t{x[3]} << 16;
        }
      }
    }
  }
};

#endif  // NIBBLE_HAVE_WGMMA

template <KvFormat kFormat, int kDim>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    PrefillAttentionKernel(const __grid_constant__ AttentionProblem p,
                           const __grid_constant__ PrefillMaps maps) {
#ifdef NIBBLE_HAVE_WGMMA
  using Shared = PrefillShared<kFormat, kDim>;
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = ptx::SharedAddress(raw) % 1024;
  Shared& shared = *reinterpret_cast<Shared*>(raw + (1024 - misaligned) % 1024);
  ptx::LaunchSuccessor();
  // Tiles late in a prompt see the most keys: they go first.
  const int pair = gridDim.x - 1 - blockIdx.x;
  const int slot = pair / p.kv_heads;
  const int kv_head = pair - slot * p.kv_heads;
  const AttentionTile tile = FindTile(p, Shared::kTileRows, slot);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kSlots; ++i) {
      ptx::BarrierInit(&shared.filled[i], Shared::kArrivals);
      ptx::BarrierInit(&shared.freed[i], 8);
    }
    for (int i = 0; i < Shared::kStageBarriers; ++i) {
      ptx::BarrierInit(&shared.stage_filled[i], 4);
      ptx::BarrierInit(&shared.stage_freed[i], 4);
    }
    ptx::BarrierInit(&shared.edge, 4);
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  ptx::WaitForPredecessor();
  if (tile.sequence < 0) return;
  const KeyRange keys = KeysOfTile(p, tile, Shared::kTileRows);
  const int first_leaf = keys.first / kLeafKeys;
  const int last_leaf = keys.last / kLeafKeys;
  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == 0) {
    ptx::GiveRegisters<Shared::kProducerRegisters>();
    const LeafBoxes<Shared::kFp8 ? kDim : 128> boxes(p, tile, kv_head, keys);
    if constexpr (Shared::kNvfp4) {
      Nvfp4Producer<kDim>{p, shared, tile, kv_head, keys}.Run(first_leaf, last_leaf);
    } else if constexpr (Shared::kFp8) {
      Fp8Producer<kDim>{shared, maps, boxes}.Run(first_leaf, last_leaf);
    } else {
      Bf16Producer<kDim>{shared, maps, boxes}.Run(first_leaf, last_leaf);
    }
  } else {
    ptx::TakeRegisters<Shared::kConsumerRegisters>();
    PrefillConsumer<kFormat, kDim> consumer(p, shared, tile, kv_head, warpgroup - 1);
    consumer.Run(first_leaf, last_leaf);
  }
#endif
}

}  // namespace nibble::kernels::cuda
