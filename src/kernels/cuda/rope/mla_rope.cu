// CTA 0 of a token normalises the latent; the warps of the others turn one vector each: the shared
// key, then the rope part of each query head.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rope/cache_write.cuh"
#include "kernels/cuda/rope/nvfp4_cache_write.cuh"
#include "kernels/cuda/rope/rope.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

// in (P) turned, pair i to places i and P/2 + i, which `store` writes. Waits for the predecessor,
// with the first angles at hand.
template <typename Store>
__device__ __forceinline__ void TurnVector(const MlaRopeAndCacheParams& p, const uint16_t* in,
                                           int64_t position, Store store) {
  const int half = p.rope_dim / 2;
  const bool halves = p.pairs == RopePairs::kHalves;
  const float* cos_row = p.cos + position * half;
  const float* sin_row = p.sin + position * half;
  int i = static_cast<int>(threadIdx.x) % kWarp;
  float cos = i < half ? cos_row[i] : 0.0f, sin = i < half ? sin_row[i] : 0.0f;
  ptx::WaitForPredecessor();
  while (i < half) {
    float first[1], second[1];
    LoadBf16(in + (halves ? i : 2 * i), first);
    LoadBf16(in + (halves ? i + half : 2 * i + 1), second);
    Turn(cos, sin, first, second);
    store(i, first);
    store(i + half, second);
    i += kWarp;
    if (i < half) cos = cos_row[i], sin = sin_row[i];
  }
}

// Element i of the latent to `store`. kLatents: of a thread.
template <int kLatents, typename Store>
__device__ __forceinline__ void NormLatent(const MlaRopeAndCacheParams& p, int64_t t, Store store) {
  __shared__ float sums[kWarp];
  const auto at = [](int i) { return i * kThreads + static_cast<int>(threadIdx.x); };
  float weight[kLatents], x[kLatents];
#pragma unroll
  for (int i = 0; i < kLatents; ++i) weight[i] = at(i) < p.latent_dim ? p.kv_norm[at(i)] : 0.0f;
  ptx::WaitForPredecessor();
  const uint16_t* in = p.kv_a + t * p.kv_a_stride;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLatents; ++i) x[i] = at(i) < p.latent_dim ? ptx::FirstBf16(in[at(i)]) : 0.0f;
#pragma unroll
  for (int i = 0; i < kLatents; ++i) sum = fmaf(x[i], x[i], sum);
  const float mean = __fdividef(BlockSum(sum, sums), static_cast<float>(p.latent_dim));
  const float inverse = rsqrtf(mean + p.eps);
#pragma unroll
  for (int i = 0; i < kLatents; ++i) {
    const float value[1] = {ptx::RoundBf16(ptx::RoundBf16(x[i] * inverse) * weight[i])};
    if (at(i) < p.latent_dim) store(at(i), value);
  }
}

// The row of an NVFP4 cache, whose blocks may hold of both the latent and the turned key.
template <int kLatents>
__device__ __forceinline__ void WriteNvfp4Row(const MlaRopeAndCacheParams& p, const CacheSide& side,
                                              int64_t t) {
  __shared__ __align__(16) uint16_t row[kMaxHeadDim];
  const auto put = [&](int d, const float(&value)[1]) { StoreBf16(row + d, value); };
  NormLatent<kLatents>(p, t, put);
  if (threadIdx.x < kWarp) {
    TurnVector(p, p.kv_a + t * p.kv_a_stride + p.latent_dim, p.positions[t],
               [&](int d, const float(&value)[1]) { put(p.latent_dim + d, value); });
  }
  __syncthreads();
  const int64_t place = CacheRowOf(p.cache, p.slots[t], 0);
  for (int block = static_cast<int>(threadIdx.x); block < p.cache.head_dim / kNvfp4Block;
       block += kThreads)
    StoreNvfp4Block(p.cache, side.base, place, block, row);
}

template <int kLatents, bool kNvfp4>
__global__ void __launch_bounds__(kThreads) MlaRopeKernel(MlaRopeAndCacheParams p, CacheSide side) {
  ptx::LaunchSuccessor();
  const int64_t t = blockIdx.x;
  if (blockIdx.y == 0) {
    if constexpr (kNvfp4) {
      WriteNvfp4Row<kLatents>(p, side, t);
    } else {
      const int64_t at = HeadOffset(p.cache, p.slots[t], 0);
      NormLatent<kLatents>(p, t, [&](int d, const float(&value)[1]) {
        StoreInCache(p.cache.format, side, at + d, value);
      });
    }
    return;
  }
  const int head = (static_cast<int>(blockIdx.y) - 1) * kWarps +
                   static_cast<int>(threadIdx.x) / kWarp - 1;  // -1: the key
  const int64_t position = p.positions[t];
  if (head < 0) {
    if constexpr (kNvfp4) return;
    const int64_t at = HeadOffset(p.cache, p.slots[t], 0) + p.latent_dim;
    TurnVector(
        p, p.kv_a + t * p.kv_a_stride + p.latent_dim, position,
        [&](int d, const float(&value)[1]) { StoreInCache(p.cache.format, side, at + d, value); });
  } else if (head < p.q_heads) {
    uint16_t* out = p.q_out + (t * p.q_heads + head) * (p.latent_dim + p.rope_dim) + p.latent_dim;
    TurnVector(p, p.q + t * p.q_stride + head * p.q_head_stride, position,
               [&](int d, const float(&value)[1]) { StoreBf16(out + d, value); });
  }
}

}  // namespace

void MlaRopeAndCache(const OpContext& context, const MlaRopeAndCacheParams& p) {
  constexpr int kFew = 512 / kThreads, kMany = kMaxHeadDim / kThreads;
  const bool few = p.latent_dim <= 512;
  const auto kernel = p.cache.format == KvFormat::kNvfp4
                          ? (few ? MlaRopeKernel<kFew, true> : MlaRopeKernel<kMany, true>)
                          : (few ? MlaRopeKernel<kFew, false> : MlaRopeKernel<kMany, false>);
  const dim3 grid(static_cast<unsigned>(p.t),
                  static_cast<unsigned>(1 + (1 + p.q_heads + kWarps - 1) / kWarps));
  LaunchPdl(kernel, grid, kThreads, 0, StreamOf(context), p, SideOf(p.cache.k, p.cache.k_scale));
}

}  // namespace nibble::kernels::cuda
