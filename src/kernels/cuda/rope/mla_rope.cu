// One warp per vector: the latent with the shared key, then the rope part of each query head.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rope/cache_write.cuh"
#include "kernels/cuda/rope/rope.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxLatent = 1024;
constexpr int kPerLane = kMaxLatent / kWarp;

// in (P) turned, pair i to places i and P/2 + i, which `store` writes.
template <typename Store>
__device__ __forceinline__ void TurnHead(const MlaRopeAndCacheParams& p, const uint16_t* in,
                                         int64_t position, int lane, Store store) {
  const int half = p.rope_dim / 2;
  const bool halves = p.pairs == RopePairs::kHalves;
  for (int i = lane; i < half; i += kWarp) {
    float first[1], second[1];
    LoadBf16(in + (halves ? i : 2 * i), first);
    LoadBf16(in + (halves ? i + half : 2 * i + 1), second);
    Turn(p.cos[position * half + i], p.sin[position * half + i], first, second);
    store(i, first);
    store(i + half, second);
  }
}

// kLatents: of a lane.
template <int kLatents>
__device__ __forceinline__ void WriteLatent(const MlaRopeAndCacheParams& p, int64_t t, int lane) {
  float weight[kLatents], x[kLatents];
#pragma unroll
  for (int i = 0; i < kLatents; ++i) {
    const int d = i * kWarp + lane;
    weight[i] = d < p.latent_dim ? p.kv_norm[d] : 0.0f;
  }
  ptx::WaitForPredecessor();
  const uint16_t* in = p.kv_a + t * p.kv_a_stride;
  const int64_t at = HeadOffset(p.cache, p.slots[t], 0);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLatents; ++i) {
    const int d = i * kWarp + lane;
    x[i] = d < p.latent_dim ? ptx::FirstBf16(in[d]) : 0.0f;
  }
  TurnHead(p, in + p.latent_dim, p.positions[t], lane, [&](int d, const float(&value)[1]) {
    StoreInCache(p.cache, p.cache.k, p.cache.k_scale, at + p.latent_dim + d, value);
  });
#pragma unroll
  for (int i = 0; i < kLatents; ++i) sum = fmaf(x[i], x[i], sum);
  const float mean = __fdividef(WarpSum(sum), static_cast<float>(p.latent_dim));
  const float inverse = rsqrtf(mean + p.eps);
#pragma unroll
  for (int i = 0; i < kLatents; ++i) {
    const int d = i * kWarp + lane;
    const float value[1] = {ptx::RoundBf16(ptx::RoundBf16(x[i] * inverse) * weight[i])};
    if (d < p.latent_dim) StoreInCache(p.cache, p.cache.k, p.cache.k_scale, at + d, value);
  }
}

template <int kLatents>
__global__ void __launch_bounds__(kWarps* kWarp) MlaRopeKernel(MlaRopeAndCacheParams p) {
  ptx::LaunchSuccessor();
  const int lane = static_cast<int>(threadIdx.x);
  const int task = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.y);
  const int64_t t = blockIdx.x;
  if (task == 0) {
    WriteLatent<kLatents>(p, t, lane);
    return;
  }
  const int head = task - 1;
  if (head >= p.q_heads) return;
  ptx::WaitForPredecessor();
  uint16_t* out = p.q_out + (t * p.q_heads + head) * (p.latent_dim + p.rope_dim) + p.latent_dim;
  TurnHead(p, p.q + t * p.q_stride + head * p.q_head_stride, p.positions[t], lane,
           [&](int d, const float(&value)[1]) { StoreBf16(out + d, value); });
}

}  // namespace

void MlaRopeAndCache(const OpContext& context, const MlaRopeAndCacheParams& p) {
  static_assert(kMaxLatent >= kMaxHeadDim);
  const auto kernel = p.latent_dim <= 512 ? MlaRopeKernel<512 / kWarp> : MlaRopeKernel<kPerLane>;
  const dim3 grid(static_cast<unsigned>(p.t), static_cast<unsigned>((p.q_heads + kWarps) / kWarps));
  LaunchPdl(kernel, grid, dim3(kWarp, kWarps), 0, StreamOf(context), p);
}

}  // namespace nibble::kernels::cuda
