// One warp per head vector: q, k and v heads of all tokens in one launch.
//
// A lane holds slots of two groups of kGroup neighbouring elements each, chosen so that every pair
// that turns lies in one lane: for pairs of halves the groups are half a rotary part apart, else
// they are neighbours. Norms are the only traffic between lanes.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rope/cache_write.cuh"
#include "kernels/cuda/rope/rope.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;  // heads of a CTA

struct Slot {
  int first;   // element of group 0
  int second;  // of group 1
  int angle;   // column of cos and sin; -1: does not turn
};

template <int kGroup>
__device__ __forceinline__ Slot SlotAt(int index, int rotary_dim, RopePairs pairs) {
  const int half = rotary_dim / 2, turning = half / kGroup;
  if (index >= turning) {
    const int first = rotary_dim + (index - turning) * 2 * kGroup;
    return {first, first + kGroup, -1};
  }
  const int at = index * kGroup;
  if (pairs == RopePairs::kHalves) return {at, at + half, at};
  return {2 * at, 2 * at + kGroup, at};
}

template <int kGroup>
__device__ __forceinline__ void TurnSlot(const float* cos, const float* sin, RopePairs pairs,
                                         float (&a)[kGroup], float (&b)[kGroup]) {
  if constexpr (kGroup == 2) {
    const float2 c = *reinterpret_cast<const float2*>(cos);
    const float2 s = *reinterpret_cast<const float2*>(sin);
    const bool halves = pairs == RopePairs::kHalves;
    float second = halves ? b[0] : a[1];
    float third = halves ? a[1] : b[0];
    Turn(c.x, s.x, &a[0], &second);
    Turn(c.y, s.y, &third, &b[1]);
    a[1] = halves ? third : second;
    b[0] = halves ? second : third;
  } else {
    Turn(*cos, *sin, &a[0], &b[0]);
  }
}

__device__ __forceinline__ float Normalized(float x, float inverse, float weight, NormStyle style) {
  const float normalized = x * inverse;
  if (style == NormStyle::kRoundThenScale)
    return ptx::RoundBf16(ptx::RoundBf16(normalized) * weight);
  return ptx::RoundBf16(normalized * (style == NormStyle::kScaleOnePlus ? 1.0f + weight : weight));
}

// The part of a head that one lane holds. Places beyond the head are 0 and are not stored.
template <int kGroup, int kSlots>
struct HeadPart {
  float a[kSlots][kGroup];
  float b[kSlots][kGroup];

  __device__ __forceinline__ void Normalize(const HeadPart& weight, int head_dim, float eps,
                                            NormStyle style) {
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) sum = fmaf(b[s][i], b[s][i], fmaf(a[s][i], a[s][i], sum));
    const float mean = __fdividef(WarpSum(sum), static_cast<float>(head_dim));
    const float inverse = rsqrtf(mean + eps);
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        a[s][i] = Normalized(a[s][i], inverse, weight.a[s][i], style);
        b[s][i] = Normalized(b[s][i], inverse, weight.b[s][i], style);
      }
  }
};

template <int kGroup, int kSlots>
__global__ void __launch_bounds__(kWarps* kWarp) RopeKernel(RopeAndCacheParams p) {
  ptx::LaunchSuccessor();
  const int lane = static_cast<int>(threadIdx.x), dh = p.cache.head_dim;
  const int kv_heads = p.cache.kv_heads;
  const int head = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.y);
  if (head >= p.q_heads + 2 * kv_heads) return;
  const bool is_q = head < p.q_heads;
  const bool is_v = head >= p.q_heads + kv_heads;
  const int rotary_dim = p.cos != nullptr ? p.rotary_dim : 0;
  const auto slot_of = [&](int s) { return SlotAt<kGroup>(s * kWarp + lane, rotary_dim, p.pairs); };
  // Runs `use(s, slot, has both groups)` for the slots that the head has.
  const auto for_slots = [&](auto use) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const Slot slot = slot_of(s);
      if (slot.first < dh) use(s, slot, kGroup > 1 || slot.second < dh);
    }
  };

  const float* norm = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
  HeadPart<kGroup, kSlots> weight = {};
  if (norm != nullptr) {
    for_slots([&](int s, const Slot& slot, bool both) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        weight.a[s][i] = norm[slot.first + i];
        if (both) weight.b[s][i] = norm[slot.second + i];
      }
    });
  }
  ptx::WaitForPredecessor();

  const int64_t t = blockIdx.x;
  const int64_t stride = p.qkv_stride > 0 ? p.qkv_stride : int64_t{p.q_heads + 2 * kv_heads} * dh;
  const uint16_t* in = p.qkv + t * stride + int64_t{head} * dh;
  HeadPart<kGroup, kSlots> part = {};
  for_slots([&](int s, const Slot& slot, bool both) {
    LoadBf16(in + slot.first, part.a[s]);
    if (both) LoadBf16(in + slot.second, part.b[s]);
  });
  const int64_t position = p.positions[t];

  if (norm != nullptr && !p.norm_after_rotation) part.Normalize(weight, dh, p.eps, p.norm_style);
  if (!is_v && rotary_dim > 0) {
    const int64_t row = position * (rotary_dim / 2);
    for_slots([&](int s, const Slot& slot, bool) {
      if (slot.angle < 0) return;
      TurnSlot(p.cos + row + slot.angle, p.sin + row + slot.angle, p.pairs, part.a[s], part.b[s]);
    });
  }
  if (norm != nullptr && p.norm_after_rotation) part.Normalize(weight, dh, p.eps, p.norm_style);

  if (is_q) {
    uint16_t* out = p.q_out + (t * p.q_heads + head) * dh;
    const float scale = p.q_scale != nullptr ? p.q_scale[position] : 1.0f;
    for_slots([&](int s, const Slot& slot, bool both) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) part.a[s][i] *= scale, part.b[s][i] *= scale;
      StoreBf16(out + slot.first, part.a[s]);
      if (both) StoreBf16(out + slot.second, part.b[s]);
    });
    return;
  }
  const int kv_head = head - p.q_heads - (is_v ? kv_heads : 0);
  std::byte* base = is_v ? p.cache.v : p.cache.k;
  const float scale = is_v ? p.cache.v_scale : p.cache.k_scale;
  const int64_t at = HeadOffset(p.cache, p.slots[t], kv_head);
  for_slots([&](int s, const Slot& slot, bool both) {
    StoreInCache(p.cache, base, scale, at + slot.first, part.a[s]);
    if (both) StoreInCache(p.cache, base, scale, at + slot.second, part.b[s]);
  });
}

bool Even(const void* pointer, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(2 * element_bytes) == 0;
}

}  // namespace

void RopeAndCache(const OpContext& context, const RopeAndCacheParams& p) {
  const int dh = p.cache.head_dim;
  const int64_t cache_bytes = KvElementBytes(p.cache.format);
  const bool groups_of_two = dh % 4 == 0 && p.rotary_dim % 4 == 0 && p.qkv_stride % 2 == 0 &&
                             Even(p.qkv, 2) && Even(p.q_out, 2) && Even(p.cache.k, cache_bytes) &&
                             Even(p.cache.v, cache_bytes) && Even(p.cos, 4) && Even(p.sin, 4);
  const auto kernel = !groups_of_two ? RopeKernel<1, kMaxHeadDim / 2 / kWarp>
                      : dh <= 128    ? RopeKernel<2, 1>
                      : dh <= 256    ? RopeKernel<2, 2>
                                     : RopeKernel<2, kMaxHeadDim / 4 / kWarp>;
  const int heads = p.q_heads + 2 * p.cache.kv_heads;
  const dim3 grid(static_cast<unsigned>(p.t), static_cast<unsigned>((heads + kWarps - 1) / kWarps));
  LaunchPdl(kernel, grid, dim3(kWarp, kWarps), 0, StreamOf(context), p);
}

}  // namespace nibble::kernels::cuda
