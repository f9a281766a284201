// The rotation inside the step kernel: every CTA turns the query heads of its KV head, and the one
// that has the sequence's newest key among its own turns key and value, too. Nobody
// reads their place in the cache during the step. Bits are rope.cu's, by the same code.
#pragma once

#include "kernels/cuda/attention/attention_order.cuh"
#include "kernels/cuda/attention/step_problem.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/rope/rope_head.cuh"

namespace nibble::kernels::cuda {

// Four neighbouring dimensions of a query, d a multiple of four, as the scores' atoms want them.
template <bool kFp8>
__device__ __forceinline__ void StoreQuery(uint8_t* row, int d, const float (&x)[4]) {
  const uint32_t low = ptx::PackBf16(x[0], x[1]), high = ptx::PackBf16(x[2], x[3]);
  uint8_t* atom = row + d / 16 * 32;
  if constexpr (kFp8) {
    const int slot = E4M3Slot(d % 16);
    const uint32_t even = QueryForFp8(low & 0xffff) | uint32_t{QueryForFp8(high & 0xffff)} << 16;
    const uint32_t odd = QueryForFp8(low >> 16) | uint32_t{QueryForFp8(high >> 16)} << 16;
    *reinterpret_cast<uint32_t*>(atom + slot * 2) = even;
    *reinterpret_cast<uint32_t*>(atom + slot * 2 + 16) = odd;
  } else {
    *reinterpret_cast<uint2*>(atom + d % 16 * 2) = {low, high};
  }
}

// Four neighbouring dimensions of a key or value as the cache has them.
template <bool kFp8>
__device__ __forceinline__ void StoreNewest(uint8_t* row, int d, const float (&x)[4],
                                            const CacheSide& side) {
  if constexpr (kFp8) {
    float q[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) q[i] = QuotientByInverse(x[i], side);
    *reinterpret_cast<uint32_t*>(row + d) =
        ptx::PackE4m3(q[0], q[1]) | uint32_t{ptx::PackE4m3(q[2], q[3])} << 16;
  } else {
    StoreBf16(reinterpret_cast<uint16_t*>(row) + d, x);
  }
}

// Where the newest token of a sequence stands.
struct StepPlace {
  int32_t sequence;
  int32_t kv_head;
  int32_t position;
  int64_t slot;
};

// By all threads; waits for the predecessor. queries: (kStepRows, q_pitch bytes); newest: key, then
// value, as the cache has them.
template <bool kFp8, int kDimAtoms>
__device__ __forceinline__ void TurnHeads(const StepProblem& p, const StepPlace& place,
                                          bool owns_newest, uint8_t* queries, int q_pitch,
                                          uint8_t* newest) {
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
        StoreQuery<kFp8>(queries + i * q_pitch, slot.first, part.a[s]);
        StoreQuery<kFp8>(queries + i * q_pitch, slot.second, part.b[s]);
        return;
      }
      uint8_t* row = newest + (is_v ? p.row_bytes : 0);
      const CacheSide& side = is_v ? p.v_side : p.k_side;
      StoreNewest<kFp8>(row, slot.first, part.a[s], side);
      StoreNewest<kFp8>(row, slot.second, part.b[s], side);
    });
  }
}

// What TurnHeads left, into the cache: after a barrier.
template <int kRowBytes>
__device__ __forceinline__ void WriteNewest(const StepProblem& p, const StepPlace& place,
                                            const uint8_t* newest) {
  constexpr int kPieces = kRowBytes / 16;
  const int i = static_cast<int>(threadIdx.x) % kPieces;
  if (threadIdx.x >= 2 * kPieces) return;
  const bool is_v = threadIdx.x >= kPieces;
  const int64_t row =
      (((place.slot >> p.page_shift) * p.kv_heads + place.kv_head) << p.page_shift) +
      (place.slot & ((1 << p.page_shift) - 1));
  std::byte* to = (is_v ? p.v_side : p.k_side).base + row * kRowBytes;
  reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(newest)[threadIdx.x];
}

}  // namespace nibble::kernels::cuda
