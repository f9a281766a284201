// A few lanes per head vector: norm and rotation, the same arithmetic wherever a head is turned.
//
// A lane holds slots of two groups of kGroup neighbouring elements each, chosen so that every pair
// that turns lies in one lane: for pairs of halves the groups are half a rotary part apart, else
// they are neighbours. Norms are the only traffic between lanes. Heads of 64, 128 and 256 take 8,
// 16 and 32 lanes of one slot; several heads share a warp.
#pragma once

#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rope/cache_write.cuh"

namespace nibble::kernels::cuda {

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

// Pairs are brought into one order first: less code than a case each.
template <int kGroup>
__device__ __forceinline__ void TurnSlot(const float (&cos)[kGroup], const float (&sin)[kGroup],
                                         RopePairs pairs, float (&a)[kGroup], float (&b)[kGroup]) {
  const bool halves = kGroup == 1 || pairs == RopePairs::kHalves;
  constexpr int kHalf = kGroup / 2;
  float first[kGroup], second[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const int at = kGroup == 1 ? 0 : i % kHalf * 2;
    const float(&neighbours)[kGroup] = i < kHalf ? a : b;
    first[i] = halves ? a[i] : neighbours[at];
    second[i] = halves ? b[i] : neighbours[kGroup == 1 ? 0 : at + 1];
    Turn(cos[i], sin[i], &first[i], &second[i]);
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const int low = i / 2, high = kGroup == 1 ? 0 : kHalf + i / 2;
    a[i] = halves ? first[i] : i % 2 == 0 ? first[low] : second[low];
    b[i] = halves ? second[i] : i % 2 == 0 ? first[high] : second[high];
  }
}

// weight: 1 + the stored one where the style says so.
__device__ __forceinline__ float Normalized(float x, float inverse, float weight,
                                            bool round_first) {
  const float normalized = x * inverse;
  return ptx::RoundBf16((round_first ? ptx::RoundBf16(normalized) : normalized) * weight);
}

// The part of a head that one lane holds. Places beyond the head are 0 and are not stored.
template <int kGroup, int kLanes, int kSlots>
struct HeadPart {
  float a[kSlots][kGroup];
  float b[kSlots][kGroup];

  // All lanes of the warp call it; where `applies` is false nothing changes.
  __device__ __forceinline__ void Normalize(bool applies, const HeadPart& weight, int head_dim,
                                            float eps, bool round_first) {
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
        a[s][i] = Normalized(a[s][i], inverse, weight.a[s][i], round_first);
        b[s][i] = Normalized(b[s][i], inverse, weight.b[s][i], round_first);
      }
  }
};

enum class HeadKind : uint8_t { kQuery, kKey, kValue };

// One head vector of one token on its way through norms and rotation. All lanes of a warp make and
// use theirs together; where the head does not exist, nothing is read.
template <int kGroup, int kLanes, int kSlots>
class RopeHead {
 public:
  using Part = HeadPart<kGroup, kLanes, kSlots>;

  __device__ __forceinline__ RopeHead(const RopeAndCacheParams& params, HeadKind kind, bool exists,
                                      int64_t position)
      : p_(params), kind_(kind), exists_(exists) {
    rotary_dim_ = p_.cos != nullptr ? p_.rotary_dim : 0;
    norm_ = kind == HeadKind::kValue ? nullptr : kind == HeadKind::kQuery ? p_.q_norm : p_.k_norm;
    if (norm_ != nullptr) {
      ForSlots([&](int s, const Slot& slot, bool both) {
        LoadF32(norm_ + slot.first, weight_.a[s]);
        if (both) LoadF32(norm_ + slot.second, weight_.b[s]);
      });
      if (p_.norm_style == NormStyle::kScaleOnePlus) {
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
#pragma unroll
          for (int i = 0; i < kGroup; ++i) weight_.a[s][i] += 1.0f, weight_.b[s][i] += 1.0f;
      }
    }
    turns_ = kind != HeadKind::kValue && rotary_dim_ > 0;
    angles_ = position * (rotary_dim_ / 2);
    if (kEarlyAngles) ForSlots([&](int, const Slot& slot, bool) { LoadAngles(slot); });
    q_scale_ =
        exists && kind == HeadKind::kQuery && p_.q_scale != nullptr ? p_.q_scale[position] : 1.0f;
  }

  // The head `in`, normed and turned. The only part that reads what other kernels wrote.
  __device__ __forceinline__ Part Turned(const uint16_t* in) {
    Part part = {};
    ForSlots([&](int s, const Slot& slot, bool both) {
      LoadBf16(in + slot.first, part.a[s]);
      if (both) LoadBf16(in + slot.second, part.b[s]);
    });
    const bool some_norm = p_.q_norm != nullptr || p_.k_norm != nullptr;
    const bool round_first = p_.norm_style == NormStyle::kRoundThenScale;
    const auto normalize = [&] {
      part.Normalize(norm_ != nullptr, weight_, p_.cache.head_dim, p_.eps, round_first);
    };
    if (some_norm && !p_.norm_after_rotation) normalize();
    if (turns_) {
      ForSlots([&](int s, const Slot& slot, bool) {
        if (!kEarlyAngles) LoadAngles(slot);
        if (slot.angle >= 0) TurnSlot(cos_, sin_, p_.pairs, part.a[s], part.b[s]);
      });
    }
    if (some_norm && p_.norm_after_rotation) normalize();
    if (kind_ == HeadKind::kQuery) {
#pragma unroll
      for (int s = 0; s < kSlots; ++s)
#pragma unroll
        for (int i = 0; i < kGroup; ++i) part.a[s][i] *= q_scale_, part.b[s][i] *= q_scale_;
    }
    return part;
  }

  // Runs `use(s, slot, has both groups)` for the slots of the head that this lane has.
  template <typename Use>
  __device__ __forceinline__ void ForSlots(Use use) const {
    const int lane = static_cast<int>(threadIdx.x) % kLanes, dh = p_.cache.head_dim;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const Slot slot = SlotAt<kGroup>(s * kLanes + lane, rotary_dim_, p_.pairs);
      if (exists_ && slot.first < dh) use(s, slot, kGroup > 1 || slot.second < dh);
    }
  }

 private:
  static constexpr bool kEarlyAngles = kSlots == 1;  // there are registers for them

  __device__ __forceinline__ void LoadAngles(const Slot& slot) {
    if (slot.angle < 0 || !turns_) return;
    LoadF32(p_.cos + angles_ + slot.angle, cos_);
    LoadF32(p_.sin + angles_ + slot.angle, sin_);
  }

  const RopeAndCacheParams& p_;
  const HeadKind kind_;
  const bool exists_;
  bool turns_;
  int rotary_dim_;
  int64_t angles_;
  const float* norm_;
  Part weight_ = {};
  float cos_[kGroup] = {};
  float sin_[kGroup] = {};
  float q_scale_;
};

// Of a head vector, its token and its place in `qkv`.
__device__ __forceinline__ const uint16_t* HeadInput(const RopeAndCacheParams& p, int64_t token,
                                                     int head) {
  const int dh = p.cache.head_dim;
  const int64_t stride =
      p.qkv_stride > 0 ? p.qkv_stride : int64_t{p.q_heads + 2 * p.cache.kv_heads} * dh;
  return p.qkv + token * stride + int64_t{head} * dh;
}

// Whether heads can be read in groups of four.
inline bool HasGroupsOfFour(const RopeAndCacheParams& p) {
  return p.rotary_dim % 8 == 0 && p.qkv_stride % 4 == 0 &&
         VectorsAligned(p.cache.head_dim, p.q_norm, p.k_norm, p.cos, p.sin, p.qkv, p.q_out,
                        p.cache.k, p.cache.v);
}

}  // namespace nibble::kernels::cuda
