#include "kernels/cuda/ptx/wgmma_probe.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 128;  // one warpgroup

#ifdef NIBBLE_HAVE_WGMMA

__device__ uint64_t Hash(uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

__device__ uint16_t Draw(uint64_t key, ProbeExponents exponents) {
  const uint64_t bits = Hash(key);
  uint32_t exponent = 127;
  const uint32_t random = static_cast<uint32_t>(bits >> 32);
  if (exponents == ProbeExponents::kNarrow) exponent = 123 + random % 9;
  if (exponents == ProbeExponents::kWide) exponent = 80 + random % 95;
  if (exponents == ProbeExponents::kSubnormal) exponent = random % 2 == 0 ? 0 : 60 + random % 75;
  return static_cast<uint16_t>((bits & 0x807F) | exponent << 7);
}

__device__ float Widen(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }

__device__ bool Same(float a, float b) {
  return __float_as_uint(a) == __float_as_uint(b) || (isnan(a) && isnan(b));
}

#endif  // NIBBLE_HAVE_WGMMA

template <int kN>
__global__ void __launch_bounds__(kThreads)
    ProbeKernel(int chain, ProbeExponents exponents, uint64_t seed, unsigned long long* counts) {
#ifdef NIBBLE_HAVE_WGMMA
  __shared__ alignas(1024) uint16_t b_swizzled[kN * 64];  // columns 0..15 of each row are used
  __shared__ uint16_t a_plain[64 * 16];
  __shared__ uint16_t b_plain[kN * 16];
  const int thread = threadIdx.x;
  const int warp = thread / 32;
  const int g = thread % 32 / 4;
  const int q = thread % 4;
  ptx::WaitForPredecessor();

  float warpgroup[kN / 2] = {};
  float warps[kN / 8][4] = {};
  float scalar[kN / 8][4] = {};
  for (int link = 0; link < chain; ++link) {
    const uint64_t key = seed + (uint64_t{blockIdx.x} * 64 + link) * 65536;
    __syncthreads();
    for (int i = thread; i < 64 * 16; i += kThreads) a_plain[i] = Draw(key + i, exponents);
    for (int i = thread; i < kN * 16; i += kThreads) {
      const int row = i / 16;
      const int chunk = i % 16 / 8;
      b_plain[i] = Draw(key + 32768 + i, exponents);
      b_swizzled[row * 64 + (chunk ^ row % 8) * 8 + i % 8] = b_plain[i];
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    const auto pair = [](const uint16_t* at) { return uint32_t{at[0]} | uint32_t{at[1]} << 16; };
    const uint16_t* rows = a_plain + 16 * 16 * warp;
    const uint32_t a[4] = {pair(rows + 16 * g + 2 * q), pair(rows + 16 * (g + 8) + 2 * q),
                           pair(rows + 16 * g + 2 * q + 8), pair(rows + 16 * (g + 8) + 2 * q + 8)};
    ptx::WgmmaFence();
    ptx::WgmmaBf16<kN>(warpgroup, a, ptx::WgmmaDescriptor(b_swizzled), link > 0);
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    ptx::WgmmaPin(warpgroup);
    for (int tile = 0; tile < kN / 8; ++tile) {
      const uint16_t* b = b_plain + 16 * (8 * tile + g);
      ptx::MmaBf16(warps[tile], a, pair(b + 2 * q), pair(b + 2 * q + 8));
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k)
          scalar[tile][i] =
              fmaf(Widen(rows[16 * (g + i / 2 * 8) + k]),
                   Widen(b_plain[16 * (8 * tile + 2 * q + i % 2) + k]), scalar[tile][i]);
    }
  }
  int different = 0;
  int different_from_fma = 0;
  for (int tile = 0; tile < kN / 8; ++tile)
    for (int i = 0; i < 4; ++i) {
      different += !Same(warpgroup[4 * tile + i], warps[tile][i]);
      different_from_fma += !Same(scalar[tile][i], warps[tile][i]);
    }
  atomicAdd(counts, static_cast<unsigned long long>(different));
  atomicAdd(counts + 1, static_cast<unsigned long long>(different_from_fma));
#endif
}

}  // namespace

ProbeResult ProbeWgmma(int n, int chain, ProbeExponents exponents, int blocks, uint64_t seed) {
  const auto kernel = n == 8    ? ProbeKernel<8>
                      : n == 32 ? ProbeKernel<32>
                      : n == 64 ? ProbeKernel<64>
                                : ProbeKernel<128>;
  unsigned long long* counts = nullptr;
  cudaMalloc(&counts, 2 * sizeof(*counts));
  cudaMemset(counts, 0, 2 * sizeof(*counts));
  LaunchPdl(kernel, blocks, kThreads, 0, nullptr, chain, exponents, seed, counts);
  unsigned long long host[2] = {~0ull, 0};
  cudaMemcpy(host, counts, sizeof(host), cudaMemcpyDeviceToHost);
  cudaFree(counts);
  return {static_cast<uint64_t>(blocks) * 64 * n, host[0], host[1]};
}

}  // namespace nibble::kernels::cuda
