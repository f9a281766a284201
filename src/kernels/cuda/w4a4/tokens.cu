#include "kernels/cuda/w4a4/tokens.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/w4a4/block.cuh"

namespace nibble::kernels::cuda::w4a4 {
namespace {

constexpr int kWarps = 8;  // a k-tile each

// The 16 columns of a block as they meet the weight; zeros past K.
template <bool kPlain>
__device__ __forceinline__ void LoadBlock(const QuantizeParams& p, const uint16_t* row, int column,
                                          float (&values)[kNvfp4Block]) {
  if constexpr (kPlain) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const uint4 words = reinterpret_cast<const uint4*>(row + column)[v];
      const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[8 * v + 2 * i] = ptx::FirstBf16(pairs[i]);
        values[8 * v + 2 * i + 1] = ptx::SecondBf16(pairs[i]);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kNvfp4Block; ++i) {
      const int at = column + i;
      values[i] = ptx::FirstBf16(row[p.column_order == nullptr ? at : p.column_order[at]]);
      if (p.input_multiplier != nullptr)
        values[i] = ptx::RoundBf16(values[i] * p.input_multiplier[at]);
    }
  }
}

// A warp: a k-tile of a group of tokens; lane 4 g + b: block b of token g. kPlain: x as it is, in
// whole vectors.
template <bool kPlain>
__global__ void __launch_bounds__(32 * kWarps)
    QuantizeKernel(const QuantizeParams p, int k_tiles, std::byte* out) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int tile = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
  if (tile >= k_tiles) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int group = static_cast<int>(blockIdx.y);
  const int64_t token = int64_t{group} * kGroupTokens + lane / 4;
  const int column = tile * kTileColumns + lane % 4 * kNvfp4Block;

  float values[kNvfp4Block] = {};
  if (token < p.m && column < p.k) LoadBlock<kPlain>(p, p.x + token * p.x_stride, column, values);
  std::byte* const piece = out + (int64_t{tile / kSliceTiles} * gridDim.y + group) * kPieceBytes;
  StoreBlock(values, p.inverse_scale, tile % kSliceTiles, lane, piece);
}

}  // namespace

void QuantizeTokens(const QuantizeParams& p, std::byte* out, void* stream) {
  const bool plain = p.column_order == nullptr && p.input_multiplier == nullptr &&
                     p.x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
  const int k_tiles = static_cast<int>(Slices(p.k)) * kSliceTiles;
  LaunchPdl(plain ? QuantizeKernel<true> : QuantizeKernel<false>,
            dim3((k_tiles + kWarps - 1) / kWarps, static_cast<unsigned>(Groups(p.m))), 32 * kWarps,
            0, static_cast<cudaStream_t>(stream), p, k_tiles, out);
}

}  // namespace nibble::kernels::cuda::w4a4
