// The rotation inside the step kernel: every CTA turns the query heads of its KV head, and the one
// that has the sequence's newest key among its own turns key and value, too. Nobody
// reads their place in the cache during the step. Bits are rope.cu's, by the same code.
#pragma once

#include "kernels/cuda/attention/attention_order.cuh"
#include "kernels/cuda/attention/step_rows.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/rope/nvfp4_cache_write.cuh"
#include "kernels/cuda/rope/rope_head.cuh"

namespace nibble::kernels::cuda {

// Four neighbouring dimensions of a query, d a multiple of four, as the scores' atoms want them.
template <KvFormat kFormat>
__device__ __forceinline__ void StoreQuery(uint8_t* row, int d, const float (&x)[4]) {
  const uint32_t low = ptx::PackBf16(x[0], x[1]), high = ptx::PackBf16(x[2], x[3]);
  uint8_t* atom = row + d / 16 * 32;
  if constexpr (kFormat == KvFormat::kNvfp4) {
    const int slot = Nvfp4Slot(d % 16);
    *reinterpret_cast<uint32_t*>(atom + slot * 2) = __byte_perm(low, high, 0x5410);
    *reinterpret_cast<uint32_t*>(atom + slot * 2 + 16) = __byte_perm(low, high, 0x7632);
  } else if constexpr (kFormat == KvFormat::kFp8) {
    const int slot = E4M3Slot(d % 16);
    const uint32_t even = QueryForFp8(low & 0xffff) | uint32_t{QueryForFp8(high & 0xffff)} << 16;
    const uint32_t odd = QueryForFp8(low >> 16) | uint32_t{QueryForFp8(high >> 16)} << 16;
    *reinterpret_cast<uint32_t*>(atom + slot * 2) = even;
    *reinterpret_cast<uint32_t*>(atom + slot * 2 + 16) = odd;
  } else {
    *reinterpret_cast<uint2*>(atom + d % 16 * 2) = {low, high};
  }
}

// The step's own key and value as the cache has them.
template <KvFormat kFormat, int kDimAtoms>
struct NewestRows {
  static constexpr bool kNvfp4 = kFormat == KvFormat::kNvfp4;
  using Bytes = StepRowBytes<kFormat, kDimAtoms>;
  alignas(16) uint8_t key[(Bytes::kAll + 15) / 16 * 16];
  alignas(16) uint8_t value[(Bytes::kAll + 15) / 16 * 16];
  alignas(16) uint16_t turned[2][kNvfp4 ? kDimAtoms * 16 : 8];  // on their way to NVFP4

  // Four neighbouring dimensions.
  __device__ __forceinline__ void Store(bool is_v, int d, const float (&x)[4],
                                        const CacheSide& side) {
    uint8_t* row = is_v ? value : key;
    if constexpr (kNvfp4) {
      StoreBf16(turned[is_v] + d, x);
    } else if constexpr (kFormat == KvFormat::kFp8) {
      float q[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) q[i] = QuotientByInverse(x[i], side);
      *reinterpret_cast<uint32_t*>(row + d) =
          ptx::PackE4m3(q[0], q[1]) | uint32_t{ptx::PackE4m3(q[2], q[3])} << 16;
    } else {
      StoreBf16(reinterpret_cast<uint16_t*>(row) + d, x);
    }
  }

  // Of NVFP4, from `turned`: by whole warps; a lane of a head has half of a block.
  __device__ __forceinline__ void Quantize(bool exists, bool is_v) {
    __syncwarp();
    const int half = static_cast<int>(threadIdx.x) % (2 * kDimAtoms);
    uint4 numbers = {};
    if (exists) numbers = reinterpret_cast<const uint4*>(turned[is_v])[half];
    uint8_t scale;
    const uint32_t codes = QuantizeHalfBlock(numbers, scale);
    if (!exists) return;
    uint8_t* row = is_v ? value : key;
    reinterpret_cast<uint32_t*>(row)[half] = codes;
    if (half % 2 == 0) row[Bytes::kNumbers + half / 2] = scale;
  }
};

// Where the newest token of a sequence stands.
struct StepPlace {
  int32_t sequence;
  int32_t kv_head;
  int32_t position;
  int64_t slot;
};

// By all threads; waits for the predecessor. queries: (kStepRows, q_pitch bytes).
template <KvFormat kFormat, int kDimAtoms>
__device__ __forceinline__ void TurnHeads(const StepProblem& p, const StepPlace& place,
                                          bool owns_newest, uint8_t* queries, int q_pitch,
                                          NewestRows<kFormat, kDimAtoms>& newest) {
  constexpr int kLanes = kDimAtoms * 2;
  constexpr int kAtOnce = kStepThreads / kLanes;
  const RopeAndCacheParams& rope = p.rope;
  const int q_count = p.heads_per_kv;
  const int count = q_count + (owns_newest ? 2 : 0);
  for (int i = threadIdx.x * 16; i < (kStepRows - q_count) * q_pitch; i += kStepThreads * 16)
    *reinterpret_cast<uint4*>(queries + q_count * q_pitch + i) = {};
  for (int base = 0; base < count; base += kAtOnce) {
    const int i = base + static_cast<int>(threadIdx.x) / kLanes;
    const bool is_v = i == q_count + 1;
    const HeadKind kind = i < q_count ? HeadKind::kQuery : is_v ? HeadKind::kValue : HeadKind::kKey;
    RopeHead<4, kLanes, 1> head(rope, kind, i < count, place.position);
    if (base == 0) {
      ptx::WaitForPredecessor();
      ptx::LaunchSuccessor();
    }
    const int head_in_row = kind == HeadKind::kQuery
                                ? place.kv_head * p.heads_per_kv + i
                                : p.q_heads + (is_v ? p.kv_heads : 0) + place.kv_head;
    const auto part = head.Turned(HeadInput(rope, place.sequence, head_in_row));
    head.ForSlots([&](int s, const Slot& slot, bool) {
      if (kind == HeadKind::kQuery) {
        StoreQuery<kFormat>(queries + i * q_pitch, slot.first, part.a[s]);
        StoreQuery<kFormat>(queries + i * q_pitch, slot.second, part.b[s]);
        return;
      }
      const CacheSide& side = is_v ? p.v_side : p.k_side;
      newest.Store(is_v, slot.first, part.a[s], side);
      newest.Store(is_v, slot.second, part.b[s], side);
    });
    if constexpr (kFormat == KvFormat::kNvfp4) {
      const bool is_newest = i >= q_count && i < count;
      if (__any_sync(kAllLanes, is_newest)) newest.Quantize(is_newest, is_v);
    }
  }
}

// What TurnHeads left, into the cache: after a barrier.
template <KvFormat kFormat, int kDimAtoms>
__device__ __forceinline__ void WriteNewest(const StepProblem& p, const StepPlace& place,
                                            const NewestRows<kFormat, kDimAtoms>& newest) {
  using Bytes = StepRowBytes<kFormat, kDimAtoms>;
  constexpr int kPieces = Bytes::kNumbers / 16, kScaleWords = Bytes::kScales / 4;
  constexpr int kParts = kPieces + kScaleWords;
  const int i = static_cast<int>(threadIdx.x) % kParts;
  if (threadIdx.x >= 2 * kParts) return;
  const bool is_v = threadIdx.x >= kParts;
  const int64_t first_row = ((place.slot >> p.page_shift) * p.kv_heads + place.kv_head)
                            << p.page_shift;
  const int64_t in_page = place.slot & ((1 << p.page_shift) - 1);
  std::byte* page = (is_v ? p.v_side : p.k_side).base + first_row * Bytes::kAll;
  const uint8_t* from = is_v ? newest.value : newest.key;
  if (i < kPieces) {
    reinterpret_cast<uint4*>(page + in_page * Bytes::kNumbers)[i] =
        reinterpret_cast<const uint4*>(from)[i];
    return;
  }
  page += (Bytes::kNumbers << p.page_shift) + in_page * Bytes::kScales;
  reinterpret_cast<uint32_t*>(page)[i - kPieces] =
      reinterpret_cast<const uint32_t*>(from + Bytes::kNumbers)[i - kPieces];
}

}  // namespace nibble::kernels::cuda
