#include "kernels/cuda/prefill/tokens.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm/normalize.cuh"
#include "kernels/cuda/prefill/token_places.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 8;

// Where the results lie: pieces of a group of 8 tokens, or permuted rows.
struct Layout {
  std::byte* out;
  int tiles;
  int groups;       // of all parts
  int part_groups;  // of a part
  // Counters that are set to 0 on the way.
  int32_t* zeros = nullptr;
  int zero_count = 0;

  // Of chunk `chunk` of a token's column tile.
  template <bool kRows>
  __device__ __forceinline__ uint4* Place(int64_t token, int tile, int chunk) const {
    if constexpr (kRows)
      return reinterpret_cast<uint4*>(out + (token * tiles + tile) * 128) + chunk;
    return TokenPlaces{out, tiles, part_groups}.Chunk(token, tile, chunk);
  }
};

// ---- Rows of aligned vectors, perhaps normed

// Columns per CTA: a warp takes four runs of a token's (normalize.cuh).
constexpr int kRunsOfWarp = 4;
constexpr int kBlockColumns = kRunsOfWarp * kRunValues;

// A lane has 8 neighbouring columns, one half h of lane q's 16 (weight_tiles.h); a chunk has two
// columns of each q. So four lanes of the same half exchange pairs: theirs is chunk 4 h + q then.
__device__ __forceinline__ uint4 ChunkOf(uint4 columns, int lane) {
  uint32_t pairs[4] = {columns.x, columns.y, columns.z, columns.w};
  const int q = lane % 8 / 2;
#pragma unroll
  for (int bit = 0; bit < 2; ++bit)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >> bit & 1) continue;
      const int j = i | 1 << bit;
      const bool upper = q >> bit & 1;
      const uint32_t other = __shfl_xor_sync(kAllLanes, upper ? pairs[i] : pairs[j], 2 << bit);
      pairs[i] = upper ? other : pairs[i];
      pairs[j] = upper ? pairs[j] : other;
    }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// What the CTAs of a row share: the sum of squares of each run, by row.
struct RunSums {
  alignas(16) float values[kGroupTokens][kWarp];
  ptx::BytesBarrier barrier;
};

// A CTA has kBlockColumns columns of a group of tokens, a warp each. With a norm the CTAs of a
// group are a cluster.
template <bool kNorms, bool kRows>
__global__ void __launch_bounds__(32 * kWarps)
    PrepareVectorsKernel(const PrepareTokensParams p, Layout layout) {
  static_assert(kWarps == kGroupTokens);
  [[maybe_unused]] __shared__ RunSums sums;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int k = static_cast<int>(p.k);
  const int64_t token = int64_t{blockIdx.y} * kGroupTokens + warp;
  const auto column = [&](int r) {
    return static_cast<int>(blockIdx.x) * kBlockColumns + r * kRunValues + lane * kVector;
  };
  [[maybe_unused]] float weight[kNorms ? kRunsOfWarp : 1][kVector];
  if constexpr (kNorms) {
#pragma unroll
    for (int r = 0; r < kRunsOfWarp; ++r)
      LoadF32x8(p.norm.weight + column(r), k - column(r), true, weight[r]);
    if (gridDim.x > 1) {
      if (threadIdx.x == 0) sums.barrier.Init();
      ptx::SyncCluster();
    }
  }
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();

  if (blockIdx.x == 0 && blockIdx.y == 0)
    for (int i = threadIdx.x; i < layout.zero_count; i += blockDim.x) layout.zeros[i] = 0;
  uint4 vectors[kRunsOfWarp];
#pragma unroll
  for (int r = 0; r < kRunsOfWarp; ++r)
    vectors[r] = token < p.m ? LoadBf16x8(p.x + token * p.x_stride + column(r), k - column(r), true)
                             : uint4{};
  if constexpr (kNorms) {
    float mine[kRunsOfWarp];
#pragma unroll
    for (int r = 0; r < kRunsOfWarp; ++r) mine[r] = WarpSum(AddSquares(vectors[r], 0.0f));
    float* const place = &sums.values[warp][blockIdx.x * kRunsOfWarp];
    if (gridDim.x > 1) {
      if (threadIdx.x == 0)
        sums.barrier.Expect(gridDim.x * kWarps * kRunsOfWarp *
                            static_cast<uint32_t>(sizeof(float)));
      if (lane < static_cast<int>(gridDim.x)) sums.barrier.Send(place, lane, mine);
      sums.barrier.Wait(0);
    } else {
      if (lane == 0)
        *reinterpret_cast<float4*>(place) = make_float4(mine[0], mine[1], mine[2], mine[3]);
      __syncwarp();
    }
    const float sum =
        WarpSum(lane < static_cast<int>(gridDim.x) * kRunsOfWarp ? sums.values[warp][lane] : 0.0f);
    const float inverse = InverseRoot(sum, 1.0f / static_cast<float>(k), p.norm.eps);
#pragma unroll
    for (int r = 0; r < kRunsOfWarp; ++r)
      if (token < p.m) vectors[r] = NormVector(vectors[r], inverse, weight[r], p.norm.style);
  }
#pragma unroll
  for (int r = 0; r < kRunsOfWarp; ++r) {
    const uint4 chunk = ChunkOf(vectors[r], lane);
    const int tile = column(r) / kTileColumns;
    if (tile < layout.tiles && (!kRows || token < p.m))
      *layout.Place<kRows>(token, tile, lane % 2 * 4 + lane % 8 / 2) = chunk;
  }
}

bool TakesVectors(const PrepareTokensParams& p) {
  return p.column_order == nullptr && p.input_multiplier == nullptr && p.k % kVector == 0 &&
         VectorsAligned(p.x_stride, p.x);
}

template <bool kRows>
void LaunchVectors(const PrepareTokensParams& p, const Layout& layout, void* stream) {
  const auto blocks = static_cast<unsigned>((p.k + kBlockColumns - 1) / kBlockColumns);
  const auto groups = static_cast<unsigned>(layout.groups);
  const auto s = static_cast<cudaStream_t>(stream);
  if (p.norm.weight == nullptr) {
    return LaunchPdl(PrepareVectorsKernel<false, kRows>, dim3(blocks, groups), 32 * kWarps, 0, s, p,
                     layout);
  }
  LaunchPdlCluster(PrepareVectorsKernel<true, kRows>, dim3(std::bit_ceil(blocks), groups),
                   32 * kWarps, dim3(std::bit_ceil(blocks)), 0, s, p, layout);
}

// ---- Others

// Two neighbouring columns, in the order of the weight's.
__device__ __forceinline__ uint32_t Pair(const PrepareTokensParams& p, const uint16_t* row,
                                         int column) {
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

// A warp lays out a column tile of a group.
template <bool kRows>
__global__ void __launch_bounds__(32 * kWarps)
    PreparePairsKernel(const PrepareTokensParams p, Layout layout) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int tile = blockIdx.x * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int chunk = lane % 8;
  if (tile >= layout.tiles) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t token = int64_t{blockIdx.y} * kGroupTokens + 4 * half + lane / 8;
    if (kRows && token >= p.m) continue;
    uint32_t v[4] = {};
    if (token < p.m)
#pragma unroll
      for (int q = 0; q < 4; ++q)
        v[q] = Pair(p, p.x + token * p.x_stride, tile * kTileColumns + 2 * chunk + 16 * q);
    *layout.Place<kRows>(token, tile, chunk) = make_uint4(v[0], v[1], v[2], v[3]);
  }
}

template <bool kRows>
void Launch(const PrepareTokensParams& p, const Layout& layout, void* stream) {
  if (TakesVectors(p)) return LaunchVectors<kRows>(p, layout, stream);
  LaunchPdl(PreparePairsKernel<kRows>,
            dim3((layout.tiles + kWarps - 1) / kWarps, static_cast<unsigned>(layout.groups)),
            32 * kWarps, 0, static_cast<cudaStream_t>(stream), p, layout);
}

int TilesOf(int64_t k) { return static_cast<int>((k + kTileColumns - 1) / kTileColumns); }

int GroupsOf(int64_t m) { return static_cast<int>((m + kGroupTokens - 1) / kGroupTokens); }

}  // namespace

bool PreparationNorms(const PrepareTokensParams& p) {
  return TakesVectors(p) && p.k <= kMaxFusedNormWidth &&
         reinterpret_cast<uintptr_t>(p.norm.weight) % 16 == 0;
}

void PermuteRows(const PrepareTokensParams& params, uint16_t* out, void* stream) {
  const int groups = GroupsOf(params.m);
  Launch<true>(params, {reinterpret_cast<std::byte*>(out), TilesOf(params.k), groups, groups},
               stream);
}

namespace {

// The first band, and counters for the others.
PreparedTokens PrepareFirstBand(const PrepareTokensParams& params, std::byte* memory,
                                void* stream) {
  const int groups = GroupsOf(params.m);
  auto* const done = reinterpret_cast<int32_t*>(memory + PreparedBytes(params.m, params.k));
  PrepareTokensParams first = params;
  first.m = params.band_tokens;
  LaunchVectors<false>(first,
                       {.out = memory,
                        .tiles = TilesOf(params.k),
                        .groups = GroupsOf(first.m),
                        .part_groups = groups,
                        .zeros = done,
                        .zero_count = static_cast<int>(DoneBytes(params.m, params.band_tokens) /
                                                       static_cast<int64_t>(sizeof(int32_t)))},
                       stream);
  return {.data = memory,
          .groups = groups,
          .tiles = TilesOf(params.k),
          .rest = {.x = params.x,
                   .x_stride = params.x_stride,
                   .m = static_cast<int32_t>(params.m),
                   .k = static_cast<int32_t>(params.k),
                   .band_groups = params.band_tokens / kGroupTokens,
                   .done = done}};
}

}  // namespace

PreparedTokens PrepareTokens(const PrepareTokensParams& params, std::byte* memory, void* stream) {
  if (params.band_tokens > 0 && params.m > params.band_tokens && params.norm.weight == nullptr &&
      TakesVectors(params))
    return PrepareFirstBand(params, memory, stream);
  const int all = GroupsOf(params.m);
  const int of_part = params.part_tokens == 0 ? all : params.part_tokens / kGroupTokens;
  const Layout layout = {memory, TilesOf(params.k), (all + of_part - 1) / of_part * of_part,
                         of_part};
  Launch<false>(params, layout, stream);
  return {.data = memory, .groups = of_part, .tiles = layout.tiles};
}

void LayOutRows(const uint16_t* rows, int64_t m, int64_t k, ActivationLayout layout, uint16_t* out,
                void* stream) {
  PrepareTokens({.x = rows, .x_stride = k, .m = m, .k = k, .part_tokens = layout.part_tokens},
                reinterpret_cast<std::byte*>(out), stream);
}

}  // namespace nibble::kernels::cuda
