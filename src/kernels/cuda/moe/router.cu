// Warp w takes slices w, w + 8, ... of a row tile; the first one's weights come before the wait.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/router.h"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTokens = 8;  // of a block
constexpr int kVectors = CodeBytes(TileFormat::kBf16) / 512;
// Floats from one token to the next, without bank conflicts.
constexpr int kTokenStride = 20;
constexpr int kMaxRouterSlices = 64;

// A lane's weights of a slice; zeros where it is short.
struct SliceCodes {
  uint4 codes[kSliceTiles][kVectors];

  __device__ __forceinline__ void Load(const std::byte* slice, int tiles, int lane) {
#pragma unroll
    for (int i = 0; i < kSliceTiles; ++i) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        codes[i][v] = make_uint4(0, 0, 0, 0);
        if (i < tiles) {
          codes[i][v] =
              __ldg(reinterpret_cast<const uint4*>(slice + (i * kVectors + v) * 512) + lane);
        }
      }
    }
  }
};

__global__ void __launch_bounds__(kThreads) RouterKernel(const __grid_constant__ RouterParams p) {
  extern __shared__ float partial_sums[];
  auto* const partial = reinterpret_cast<float(*)[kTokens * kTokenStride]>(partial_sums);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool is_gate = static_cast<int>(blockIdx.x) == p.router.row_tiles;
  const WeightTiles& weight = is_gate ? p.gate : p.router;
  const int row_tile = is_gate ? 0 : blockIdx.x;
  const std::byte* const data = weight.data + row_tile * weight.row_tile_bytes;
  const int slices = weight.slices(), stride = weight.slice_stride();
  SliceCodes codes;
  if (warp < slices) codes.Load(data + warp * stride, weight.tiles_of(warp), lane);
  ptx::LaunchSuccessor();
  ptx::WaitForPredecessor();

  const int first_token = blockIdx.y * kTokens;
  const int tokens = min(kTokens, static_cast<int>(p.t) - first_token);
  const int64_t token = first_token + min(lane / 4, tokens - 1);
  const uint16_t* const x =
      (is_gate ? p.x + token * p.x_stride : p.router_x + token * p.router_stride) + lane % 4 * 16;
  for (int slice = warp; slice < slices; slice += kWarps) {
    const int tiles = weight.tiles_of(slice);
    if (slice > warp) codes.Load(data + slice * stride, tiles, lane);
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < kSliceTiles; ++i) {
      if (i >= tiles) break;
      int x_tile = slice * kSliceTiles + i;
      while (x_tile >= weight.x_tiles) x_tile -= weight.x_tiles;
      const auto* at = reinterpret_cast<const uint4*>(x + x_tile * kTileColumns);
      const uint4 first = at[0], second = at[1];
      const uint4(&c)[kVectors] = codes.codes[i];
      ptx::MmaBf16(sum, {c[0].x, c[2].x, c[0].y, c[2].y}, first.x, first.y);
      ptx::MmaBf16(sum, {c[0].z, c[2].z, c[0].w, c[2].w}, first.z, first.w);
      ptx::MmaBf16(sum, {c[1].x, c[3].x, c[1].y, c[3].y}, second.x, second.y);
      ptx::MmaBf16(sum, {c[1].z, c[3].z, c[1].w, c[3].w}, second.z, second.w);
    }
    float* const to = partial[slice] + lane % 4 * 2 * kTokenStride + lane / 4;
    to[0] = sum[0];
    to[8] = sum[2];
    to[kTokenStride] = sum[1];
    to[kTokenStride + 8] = sum[3];
  }
  __syncthreads();
  const int row = threadIdx.x % kTileRows, column = threadIdx.x / kTileRows;
  const int n = row_tile * kTileRows + row;
  if (column < tokens && n < weight.n) {
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < slices; ++s) sum += partial[s][column * kTokenStride + row];
    sum *= weight.row_scales[n];
    if (is_gate) {
      p.gate_logits[first_token + column] = sum;
    } else {
      if (p.bias != nullptr) sum += p.bias[n];
      p.logits[int64_t{first_token + column} * weight.n + n] = sum;
    }
  }
}

bool Takes(const WeightTiles& weight, const uint16_t* x, int64_t stride) {
  return weight.format == TileFormat::kBf16 && weight.k % kTileColumns == 0 &&
         weight.slices() <= kMaxRouterSlices && stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

}  // namespace

bool RouterTakes(const RouterParams& p) {
  return p.t <= kMaxRouterTokens && Takes(p.router, p.router_x, p.router_stride) &&
         (p.gate.data == nullptr || Takes(p.gate, p.x, p.x_stride));
}

void Router(const OpContext& context, const RouterParams& params) {
  const int gate = params.gate.data == nullptr ? 0 : 1;
  const dim3 grid(static_cast<unsigned>(params.router.row_tiles + gate),
                  static_cast<unsigned>((params.t + kTokens - 1) / kTokens));
  const size_t partial = sizeof(float) * kTokens * kTokenStride *
                         std::max(params.router.slices(), params.gate.slices());
  LaunchPdl(RouterKernel, grid, kThreads, partial, StreamOf(context), params);
}

}  // namespace nibble::kernels::cuda::moe
