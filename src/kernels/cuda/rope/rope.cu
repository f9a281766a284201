// q, k and v heads of all tokens in one launch, a few lanes per head vector (rope_head.cuh).
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/rope/nvfp4_cache_write.cuh"
#include "kernels/cuda/rope/rope.h"
#include "kernels/cuda/rope/rope_head.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// kNvfp4: of the cache, in which 16 neighbours share a scale: heads are put together first.
template <int kGroup, int kLanes, int kSlots, bool kNvfp4>
__global__ void __launch_bounds__(kThreads)
    RopeKernel(RopeAndCacheParams p, CacheSide k, CacheSide v) {
  const int kv_heads = p.cache.kv_heads;
  const int head =
      (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) / kLanes;
  const bool exists = head < p.q_heads + 2 * kv_heads;
  const bool is_q = head < p.q_heads;
  const bool is_v = head >= p.q_heads + kv_heads;
  const int64_t t = blockIdx.x;
  const int64_t slot_in_cache = p.slots[t];
  RopeHead<kGroup, kLanes, kSlots> rope(p,
                                        is_q   ? HeadKind::kQuery
                                        : is_v ? HeadKind::kValue
                                               : HeadKind::kKey,
                                        exists, p.positions[t]);
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  const HeadPart<kGroup, kLanes, kSlots> part = rope.Turned(HeadInput(p, t, head));
  if (is_q) {
    uint16_t* out = p.q_out + (t * p.q_heads + head) * p.cache.head_dim;
    rope.ForSlots([&](int s, const Slot& slot, bool both) {
      StoreBf16(out + slot.first, part.a[s]);
      if (both) StoreBf16(out + slot.second, part.b[s]);
    });
    if constexpr (!kNvfp4) return;
  }
  if constexpr (kNvfp4) {
    constexpr int kHeads = kThreads / kLanes, kMostDims = 2 * kGroup * kLanes * kSlots;
    __shared__ __align__(16) uint16_t heads[kHeads][kMostDims];
    if (!is_q) {
      uint16_t* const mine = heads[threadIdx.x / kLanes];
      rope.ForSlots([&](int s, const Slot& slot, bool both) {
        StoreBf16(mine + slot.first, part.a[s]);
        if (both) StoreBf16(mine + slot.second, part.b[s]);
      });
    }
    __syncthreads();
    const int blocks = p.cache.head_dim / kNvfp4Block;
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * blocks; i += kThreads) {
      const int kv = static_cast<int>(blockIdx.y) * kHeads + i / blocks - p.q_heads;
      if (kv < 0 || kv >= 2 * kv_heads) continue;
      StoreNvfp4Block(p.cache, kv < kv_heads ? k.base : v.base,
                      CacheRowOf(p.cache, slot_in_cache, kv % kv_heads), i % blocks,
                      heads[i / blocks]);
    }
  } else {
    const int kv_head = head - p.q_heads - (is_v ? kv_heads : 0);
    const CacheSide side = is_v ? v : k;
    const int64_t at = HeadOffset(p.cache, slot_in_cache, kv_head);
    rope.ForSlots([&](int s, const Slot& slot, bool both) {
      StoreInCache(p.cache.format, side, at + slot.first, part.a[s]);
      if (both) StoreInCache(p.cache.format, side, at + slot.second, part.b[s]);
    });
  }
}

template <int kGroup, int kLanes, int kSlots>
void Launch(const OpContext& context, const RopeAndCacheParams& p) {
  constexpr int kHeads = kThreads / kLanes;
  const int heads = p.q_heads + 2 * p.cache.kv_heads;
  const dim3 grid(static_cast<unsigned>(p.t), static_cast<unsigned>((heads + kHeads - 1) / kHeads));
  const auto kernel = p.cache.format == KvFormat::kNvfp4
                          ? RopeKernel<kGroup, kLanes, kSlots, true>
                          : RopeKernel<kGroup, kLanes, kSlots, false>;
  LaunchPdl(kernel, grid, kThreads, 0, StreamOf(context), p, SideOf(p.cache.k, p.cache.k_scale),
            SideOf(p.cache.v, p.cache.v_scale));
}

}  // namespace

void RopeAndCache(const OpContext& context, const RopeAndCacheParams& p) {
  constexpr int kFour = 4;
  const int dh = p.cache.head_dim;
  if (!HasGroupsOfFour(p)) {
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
