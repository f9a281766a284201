// Warp w takes slices w, w + 8, ... of a row tile; the first one's weights come before the wait.
#include <algorithm>

#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/carveout.h"
#include "kernels/cuda/moe/router.h"
#include "kernels/cuda/norm/norm_scale.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/reduce.cuh"

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

// Normed rows in shared memory, so far apart that lanes of neighbouring rows read different banks.
__host__ __device__ constexpr int NormedStride(int d) { return d + 8; }

// The square sum of a row, by one warp, in the order of rms_norm (norm.cu): of that op's threads
// this warp's lanes are 32 at a time.
__device__ __forceinline__ float SquareSum(const uint16_t* row, int d) {
  constexpr int kMaxThreads = 1024;
  const int lane = threadIdx.x % 32, vectors = d / kVector;
  const int warps = min((vectors + 31) / 32, kMaxThreads / 32);
  float of_warp = 0.0f;
#pragma unroll 4
  for (int w = 0; w < warps; ++w) {
    float sum = 0.0f;
    for (int v = w * 32 + lane; v < vectors; v += warps * 32) {
      float values[kVector];
      Unpack(*reinterpret_cast<const uint4*>(row + v * kVector), values);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum = fmaf(values[i], values[i], sum);
    }
    sum = WarpSum(sum);
    if (lane == w) of_warp = sum;
  }
  return warps == 1 ? __shfl_sync(kAllLanes, of_warp, 0) : WarpSum(of_warp);
}

// Rows (tokens, D) in place, a warp for each; weight: (D).
__device__ __forceinline__ void NormRows(const InputNorm& norm, const float* weight, int tokens,
                                         int d, uint16_t* rows) {
  const int lane = threadIdx.x % 32, token = threadIdx.x / 32;
  static_assert(kWarps >= kTokens);
  if (token >= tokens) return;
  uint16_t* const row = rows + token * NormedStride(d);
  const float inverse = rsqrtf(SquareSum(row, d) * (1.0f / static_cast<float>(d)) + norm.eps);
#pragma unroll 4
  for (int at = lane * kVector; at < d; at += 32 * kVector) {
    float values[kVector], scale[kVector];
    Unpack(*reinterpret_cast<const uint4*>(row + at), values);
    LoadF32x8(weight + at, kVector, true, scale);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      values[i] = NormScale(values[i], inverse, scale[i], norm.style);
    *reinterpret_cast<uint4*>(row + at) = Pack(values);
  }
}

// Copies `count` elements of 16-byte aligned rows, all threads together; the caller commits.
template <typename T>
__device__ __forceinline__ void CopyRow(T* to, const T* from, int count) {
  constexpr int kOfVector = 16 / sizeof(T);
#pragma unroll 4
  for (int i = threadIdx.x * kOfVector; i < count; i += kThreads * kOfVector)
    ptx::CopyAsync16(to + i, from + i);
}

// Shared memory: slice sums, then with a norm its weight and the block's rows.
__global__ void __launch_bounds__(kThreads) RouterKernel(const __grid_constant__ RouterParams p) {
  extern __shared__ __align__(16) float partial_sums[];
  auto* const partial = reinterpret_cast<float(*)[kTokens * kTokenStride]>(partial_sums);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool is_gate = static_cast<int>(blockIdx.x) == p.router.row_tiles;
  const WeightTiles& weight = is_gate ? p.gate : p.router;
  const int row_tile = is_gate ? 0 : blockIdx.x;
  const std::byte* const data = weight.data + row_tile * weight.row_tile_bytes;
  const int slices = weight.slices(), stride = weight.slice_stride();
  // What the sum is finished with, of the thread's row.
  const int row = threadIdx.x % kTileRows, column = threadIdx.x / kTileRows;
  const int n = row_tile * kTileRows + row;
  const float scale = n < weight.n ? weight.row_scales[n] : 0.0f;
  const float bias = !is_gate && p.bias != nullptr && n < weight.n ? p.bias[n] : 0.0f;
  SliceCodes codes;
  if (warp < slices) codes.Load(data + warp * stride, weight.tiles_of(warp), lane);
  const bool norms = p.norm.weight != nullptr;
  const int d = p.router.k;
  auto* const norm_weight =
      partial_sums + max(p.router.slices(), p.gate.slices()) * (kTokens * kTokenStride);
  auto* const rows = reinterpret_cast<uint16_t*>(norm_weight + d);
  if (norms) CopyRow(norm_weight, p.norm.weight, d);
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  const int first_token = blockIdx.y * kTokens;
  const int tokens = min(kTokens, static_cast<int>(p.t) - first_token);
  const int64_t token = first_token + min(lane / 4, tokens - 1);
  const uint16_t* x =
      (is_gate ? p.x + token * p.x_stride : p.router_x + token * p.router_stride) + lane % 4 * 16;
  if (norms) {
    for (int i = 0; i < tokens; ++i)
      CopyRow(rows + i * NormedStride(d), p.x + (first_token + i) * p.x_stride, d);
    ptx::CommitCopies();
    ptx::WaitForCopies<0>();
    __syncthreads();
    NormRows(p.norm, norm_weight, tokens, d, rows);
    __syncthreads();
    x = rows + min(lane / 4, tokens - 1) * NormedStride(d) + lane % 4 * 16;
    if (blockIdx.x == 0) {
      for (int i = threadIdx.x * kVector; i < tokens * d; i += kThreads * kVector)
        *reinterpret_cast<uint4*>(p.normed + first_token * int64_t{d} + i) =
            *reinterpret_cast<const uint4*>(rows + i / d * NormedStride(d) + i % d);
    }
  }
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
  if (column < tokens && n < weight.n) {
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < slices; ++s) sum += partial[s][column * kTokenStride + row];
    sum *= scale;
    if (is_gate) {
      p.gate_logits[first_token + column] = sum;
    } else {
      p.logits[int64_t{first_token + column} * weight.n + n] = sum + bias;
    }
  }
}

bool Takes(const WeightTiles& weight, const uint16_t* x, int64_t stride) {
  return weight.format == TileFormat::kBf16 && weight.k % kTileColumns == 0 &&
         weight.slices() <= kMaxRouterSlices && stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

size_t SharedBytes(const RouterParams& p) {
  size_t bytes =
      sizeof(float) * kTokens * kTokenStride * std::max(p.router.slices(), p.gate.slices());
  if (p.norm.weight != nullptr) {
    const auto tokens = std::min<int64_t>(p.t, kTokens);
    bytes += sizeof(float) * p.router.k + sizeof(uint16_t) * tokens * NormedStride(p.router.k);
  }
  return bytes;
}

}  // namespace

bool RouterTakes(const RouterParams& p) {
  if (p.norm.weight != nullptr &&
      (reinterpret_cast<uintptr_t>(p.norm.weight) % 16 != 0 || p.x != p.router_x ||
       SharedBytes(p) > static_cast<size_t>(CurrentDevice().shared_memory_per_block)))
    return false;
  return p.t <= kMaxRouterTokens && Takes(p.router, p.router_x, p.router_stride) &&
         (p.gate.data == nullptr || Takes(p.gate, p.x, p.x_stride));
}

void Router(const OpContext& context, const RouterParams& params) {
  const int gate = params.gate.data == nullptr ? 0 : 1;
  const dim3 grid(static_cast<unsigned>(params.router.row_tiles + gate),
                  static_cast<unsigned>((params.t + kTokens - 1) / kTokens));
  PreferSharedMemory(RouterKernel, params.before_few);
  LaunchPdl(RouterKernel, grid, kThreads, SharedBytes(params), StreamOf(context), params);
}

}  // namespace nibble::kernels::cuda::moe
