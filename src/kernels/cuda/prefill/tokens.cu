#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill/tokens.h"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTilesPerWarp = 2;

// Two neighbouring columns, in the order of the weight's.
template <bool kPlain>
__device__ __forceinline__ uint32_t Pair(const PrepareTokensParams& p, const uint16_t* row,
                                         int column) {
  if constexpr (kPlain) {
    if (column + 1 < p.k) return *reinterpret_cast<const uint32_t*>(row + column);
  }
  uint32_t pair = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (column + i >= p.k) break;
    uint32_t bits = row[p.column_order == nullptr ? column + i : p.column_order[column + i]];
    if (p.input_multiplier != nullptr)
      bits = ptx::PackBf16(ptx::FirstBf16(bits) * p.input_multiplier[column + i], 0.0f);
    pair |= (bits & 0xFFFF) << (16 * i);
  }
  return pair;
}

// A warp lays out kTilesPerWarp neighbouring column tiles of a group. kPlain: x as it is, whole
// words. kRows: as permuted rows.
template <bool kPlain, bool kRows>
__global__ void __launch_bounds__(32 * kWarps)
    PrepareTokensKernel(const PrepareTokensParams p, int tiles, std::byte* out) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int group = blockIdx.y;
  const int first_tile = (blockIdx.x * kWarps + threadIdx.x / 32) * kTilesPerWarp;
  const int lane = threadIdx.x % 32;
  const int chunk = lane % 8;

  uint32_t pairs[kTilesPerWarp][2][4] = {};
#pragma unroll
  for (int t = 0; t < kTilesPerWarp; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = int64_t{group} * kGroupTokens + 4 * half + lane / 8;
      if (first_tile + t >= tiles || token >= p.m) continue;
      const uint16_t* row = p.x + token * p.x_stride;
      const int column = (first_tile + t) * kTileColumns + 2 * chunk;
#pragma unroll
      for (int q = 0; q < 4; ++q) pairs[t][half][q] = Pair<kPlain>(p, row, column + 16 * q);
    }
#pragma unroll
  for (int t = 0; t < kTilesPerWarp; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first_tile + t >= tiles) continue;
      const int row = 4 * half + lane / 8;
      const int64_t token = int64_t{group} * kGroupTokens + row;
      if (kRows && token >= p.m) continue;
      const int64_t at = kRows ? (token * tiles + first_tile + t) * 128 + chunk * 16
                               : (int64_t{first_tile + t} * gridDim.y + group) * kPieceBytes +
                                     row * 128 + (chunk ^ row) * 16;
      const uint32_t* v = pairs[t][half];
      *reinterpret_cast<uint4*>(out + at) = make_uint4(v[0], v[1], v[2], v[3]);
    }
}

template <bool kRows>
void Launch(const PrepareTokensParams& params, int tiles, std::byte* out, void* stream) {
  const bool plain = params.column_order == nullptr && params.input_multiplier == nullptr &&
                     params.x_stride % 2 == 0 && reinterpret_cast<uintptr_t>(params.x) % 4 == 0;
  constexpr int kTilesPerBlock = kWarps * kTilesPerWarp;
  const auto groups = static_cast<unsigned>((params.m + kGroupTokens - 1) / kGroupTokens);
  LaunchPdl(plain ? PrepareTokensKernel<true, kRows> : PrepareTokensKernel<false, kRows>,
            dim3((tiles + kTilesPerBlock - 1) / kTilesPerBlock, groups), 32 * kWarps, 0,
            static_cast<cudaStream_t>(stream), params, tiles, out);
}

int TilesOf(int64_t k) { return static_cast<int>((k + kTileColumns - 1) / kTileColumns); }

}  // namespace

void PermuteRows(const PrepareTokensParams& params, uint16_t* out, void* stream) {
  Launch<true>(params, TilesOf(params.k), reinterpret_cast<std::byte*>(out), stream);
}

PreparedTokens PrepareTokens(const PrepareTokensParams& params, std::byte* memory, void* stream) {
  const int tiles = TilesOf(params.k);
  Launch<false>(params, tiles, memory, stream);
  return {.data = memory,
          .groups = static_cast<int32_t>((params.m + kGroupTokens - 1) / kGroupTokens),
          .tiles = tiles};
}

}  // namespace nibble::kernels::cuda
