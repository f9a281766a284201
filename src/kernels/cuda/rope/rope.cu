// A few lanes per head vector: q, k and v heads of all tokens in one launch.
//
// A lane holds slots of two groups of kGroup neighbouring elements each, chosen so that every pair
// that turns lies in one lane: for pairs of halves the groups are half a rotary part apart, else
// they are neighbours. Norms are the only traffic between lanes. Heads of 64, 128 and 256 take 8,
// 16 and 32 lanes of one slot; several heads share a warp.
#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rope/cache_write.cuh"
#include "kernels/cuda/rope/rope.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 128;

struct Slot {
  int first;   // element of group 0
  int second;  // of group 1
  int angle;   // column of cos and sin; -1: does not turn
};

template <int kGroup>
__device__ __forceinline__ Slot SlotAt(int index, int rotary_dim, RopePairs pairs) {
  const int half = rotary_dim / 2;
  const int at = index * kGroup;
  if (at >= half) {
    const int first = 2 * at;
    return {first, first + kGroup, -1};
  }
  if (pairs == RopePairs::kHalves) return {at, at + half, at};
  return {2 * at, 2 * at + kGroup, at};
}

template <int kGroup>
__device__ __forceinline__ void TurnSlot(const float (&cos)[kGroup], const float (&sin)[kGroup],
                                         RopePairs pairs, float (&a)[kGroup], float (&b)[kGroup]) {
  if (kGroup == 1 || pairs == RopePairs::kHalves) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) Turn(cos[i], sin[i], &a[i], &b[i]);
  } else {
#pragma unroll
    for (int i = 0; i + 1 < kGroup; i += 2) {
      Turn(cos[i / 2], sin[i / 2], &a[i], &a[i + 1]);
      Turn(cos[(kGroup + i) / 2], sin[(kGroup + i) / 2], &b[i], &b[i + 1]);
    }
  }
}

__device__ __forceinline__ float Normalized(float x, float inverse, float weight, NormStyle style) {
  const float normalized = x * inverse;
  if (style == NormStyle::kRoundThenScale)
    return ptx::RoundBf16(ptx::RoundBf16(normalized) * weight);
  return ptx::RoundBf16(normalized * (style == NormStyle::kScaleOnePlus ? 1.0f + weight : weight));
}

// The part of a head that one lane holds. Places beyond the head are 0 and are not stored.
template <int kGroup, int kLanes, int kSlots>
struct HeadPart {
  float a[kSlots][kGroup];
  float b[kSlots][kGroup];

  // All lanes of the warp call it; where `applies` is false nothing changes.
  __device__ __forceinline__ void Normalize(bool applies, const HeadPart& weight, int head_dim,
                                            float eps, NormStyle style) {
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) sum = fmaf(b[s][i], b[s][i], fmaf(a[s][i], a[s][i], sum));
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2)
      sum += __shfl_xor_sync(kAllLanes, sum, lanes);
    if (!applies) return;
    const float inverse = rsqrtf(__fdividef(sum, static_cast<float>(head_dim)) + eps);
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        a[s][i] = Normalized(a[s][i], inverse, weight.a[s][i], style);
        b[s][i] = Normalized(b[s][i], inverse, weight.b[s][i], style);
      }
  }
};

template <int kGroup, int kLanes, int kSlots>
__global__ void __launch_bounds__(kThreads)
    RopeKernel(RopeAndCacheParams p, CacheSide k, CacheSide v) {
  // Angles before the wait, where there are registers for them.
  constexpr bool kEarlyAngles = kSlots == 1;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, dh = p.cache.head_dim;
  const int kv_heads = p.cache.kv_heads;
  const int head =
      (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) / kLanes;
  const bool exists = head < p.q_heads + 2 * kv_heads;
  const bool is_q = head < p.q_heads;
  const bool is_v = head >= p.q_heads + kv_heads;
  const int rotary_dim = p.cos != nullptr ? p.rotary_dim : 0;
  // Runs `use(s, slot, has both groups)` for the slots that the head has.
  const auto for_slots = [&](auto use) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const Slot slot = SlotAt<kGroup>(s * kLanes + lane, rotary_dim, p.pairs);
      if (exists && slot.first < dh) use(s, slot, kGroup > 1 || slot.second < dh);
    }
  };

  const float* norm = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
  HeadPart<kGroup, kLanes, kSlots> weight = {};
  if (norm != nullptr) {
    for_slots([&](int s, const Slot& slot, bool both) {
      LoadF32(norm + slot.first, weight.a[s]);
      if (both) LoadF32(norm + slot.second, weight.b[s]);
    });
  }
  const int64_t t = blockIdx.x;
  const int64_t position = p.positions[t], slot_in_cache = p.slots[t];
  const bool turns = !is_v && rotary_dim > 0;
  const int64_t angles = position * (rotary_dim / 2);
  float cos[kGroup] = {}, sin[kGroup] = {};
  const auto load_angles = [&](int, const Slot& slot, bool) {
    if (slot.angle < 0 || !turns) return;
    LoadF32(p.cos + angles + slot.angle, cos);
    LoadF32(p.sin + angles + slot.angle, sin);
  };
  if (kEarlyAngles) for_slots(load_angles);
  const float q_scale = is_q && p.q_scale != nullptr ? p.q_scale[position] : 1.0f;
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  const int64_t stride = p.qkv_stride > 0 ? p.qkv_stride : int64_t{p.q_heads + 2 * kv_heads} * dh;
  const uint16_t* in = p.qkv + t * stride + int64_t{head} * dh;
  HeadPart<kGroup, kLanes, kSlots> part = {};
  for_slots([&](int s, const Slot& slot, bool both) {
    LoadBf16(in + slot.first, part.a[s]);
    if (both) LoadBf16(in + slot.second, part.b[s]);
  });

  const bool some_norm = p.q_norm != nullptr || p.k_norm != nullptr;
  if (some_norm && !p.norm_after_rotation)
    part.Normalize(norm != nullptr, weight, dh, p.eps, p.norm_style);
  if (turns) {
    for_slots([&](int s, const Slot& slot, bool both) {
      if (!kEarlyAngles) load_angles(s, slot, both);
      if (slot.angle >= 0) TurnSlot(cos, sin, p.pairs, part.a[s], part.b[s]);
    });
  }
  if (some_norm && p.norm_after_rotation)
    part.Normalize(norm != nullptr, weight, dh, p.eps, p.norm_style);

  if (is_q) {
    uint16_t* out = p.q_out + (t * p.q_heads + head) * dh;
    for_slots([&](int s, const Slot& slot, bool both) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) part.a[s][i] *= q_scale, part.b[s][i] *= q_scale;
      StoreBf16(out + slot.first, part.a[s]);
      if (both) StoreBf16(out + slot.second, part.b[s]);
    });
    return;
  }
  const int kv_head = head - p.q_heads - (is_v ? kv_heads : 0);
  const CacheSide side = is_v ? v : k;
  const int64_t at = HeadOffset(p.cache, slot_in_cache, kv_head);
  for_slots([&](int s, const Slot& slot, bool both) {
    StoreInCache(p.cache.format, side, at + slot.first, part.a[s]);
    if (both) StoreInCache(p.cache.format, side, at + slot.second, part.b[s]);
  });
}

template <int kGroup, int kLanes, int kSlots>
void Launch(const OpContext& context, const RopeAndCacheParams& p) {
  constexpr int kHeads = kThreads / kLanes;
  const int heads = p.q_heads + 2 * p.cache.kv_heads;
  const dim3 grid(static_cast<unsigned>(p.t), static_cast<unsigned>((heads + kHeads - 1) / kHeads));
  LaunchPdl(RopeKernel<kGroup, kLanes, kSlots>, grid, kThreads, 0, StreamOf(context), p,
            SideOf(p.cache.k, p.cache.k_scale), SideOf(p.cache.v, p.cache.v_scale));
}

}  // namespace

void RopeAndCache(const OpContext& context, const RopeAndCacheParams& p) {
  constexpr int kFour = 4;
  const int dh = p.cache.head_dim;
  const bool fours =
      p.rotary_dim % (2 * kFour) == 0 &&
      VectorsAligned(dh, p.q_norm, p.k_norm, p.cos, p.sin, p.qkv, p.q_out, p.cache.k, p.cache.v) &&
      p.qkv_stride % kFour == 0;
  if (!fours) {
    Launch<1, kWarp, kMaxHeadDim / 2 / kWarp>(context, p);
  } else if (dh <= 64) {
    Launch<kFour, 8, 1>(context, p);
  } else if (dh <= 128) {
    Launch<kFour, 16, 1>(context, p);
  } else if (dh <= 256) {
    Launch<kFour, 32, 1>(context, p);
  } else {
    Launch<kFour, 32, 4>(context, p);
  }
}

}  // namespace nibble::kernels::cuda
