// A tile of W4A4's products: 128 rows of a weight by up to kTokens tokens over all of K, by one
// CTA; a warp takes 32 rows by half of the tokens. Both operands come slice by slice through a ring
// of two stages. k-tiles ascend in one chain of MMAs, so that a token's bits depend on that token
// alone.
#pragma once

#include <type_traits>

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/block_scaled_mma.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/w4a4/order.h"

// Elsewhere the kernels would never run.
#if defined(NIBBLE_HAVE_BLOCK_SCALED_MMA) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define NIBBLE_COMPILE_W4A4 1
#endif

namespace nibble::kernels::cuda::w4a4 {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kRowTiles = 8;
inline constexpr int kRows = kRowTiles * kTileRows;
inline constexpr int kCodeBytes = kSliceTiles * CodeBytes(TileFormat::kNvfp4);
inline constexpr int kScaleBytes = ScaleBytes(TileFormat::kNvfp4, 0);
inline constexpr int kRowTileBytes = kCodeBytes + kScaleBytes;
inline constexpr int kStages = 2;
// Outputs on their way: (token, rows) in BF16, eight more so that rows of a column spread over
// banks.
inline constexpr int kOutputStride = kRows + 8;
// Of a warp.
inline constexpr int kWarpRowTiles = 2;
inline constexpr int kRowWarps = kRowTiles / kWarpRowTiles;

// With 128 tokens 74 KB of shared memory, of the 99 KB that SM 12.x has.
template <int kTokens>
struct TileShape {
  static constexpr int kGroups = kTokens / kGroupTokens;
  static constexpr int kWarpGroups = kGroups / (kWarps / kRowWarps);
  static constexpr int kStageBytes = kRowTiles * kRowTileBytes + kGroups * kPieceBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static_assert(kTokens * kOutputStride * 2 <= kRingBytes && kWarpGroups % 4 == 0);
};

// What a CTA multiplies.
struct TileWork {
  const std::byte* weight;  // row tile 0
  int first_row_tile;
  const std::byte* tokens;  // piece of slice 0 and the tile's first group of tokens
  int64_t slice_bytes;      // from there to the piece of the next slice
  int groups;               // of tokens that are there
};

// Where its outputs go: m tokens from the tile's first one on.
struct TileEnd {
  const float* row_scales = nullptr;
  const float* bias = nullptr;  // or null
  float input_scale = 1.0f;
  int n = 0;
  uint16_t* y = nullptr;
  float* y_f32 = nullptr;
  int64_t y_stride = 0;
  bool add = false;
  int m = 0;
};

// That of a dense linear, which may end with an activation.
struct DenseEnd : TileEnd {
  bool activates = false;  // rows of W are paired, y holds N / 2 outputs of `activation`
  Activation activation;
};

#ifdef NIBBLE_COMPILE_W4A4

// ---- Copies, 16 bytes per thread and turn

// like: the weight's sizes.
__device__ __forceinline__ void CopyWeights(const WeightTiles& like, const TileWork& work,
                                            int slice, std::byte* stage) {
  constexpr int kVectors = kRowTileBytes / 16;
  const int tiles = like.tiles_of(slice);
  const int codes = tiles * CodeBytes(TileFormat::kNvfp4);
  for (int i = static_cast<int>(threadIdx.x); i < kRowTiles * kVectors; i += kThreads) {
    const int row_tile = min(work.first_row_tile + i / kVectors, like.row_tiles - 1);
    const int at = i % kVectors * 16;
    // The last slice may be short: its scales follow its codes, in the ring they keep their place.
    const int from = at < kCodeBytes ? at : at - kCodeBytes + codes;
    const std::byte* source =
        work.weight + row_tile * like.row_tile_bytes + int64_t{slice} * like.slice_stride() + from;
    const bool there = at >= kCodeBytes || at < codes;
    ptx::CopyAsync16OrZero(stage + i * 16, there ? source : work.weight, there);
  }
}

template <int kTokens>
__device__ __forceinline__ void CopyTokens(const TileWork& work, int slice, std::byte* stage) {
  const std::byte* const from = work.tokens + slice * work.slice_bytes;
  const int bytes = min(TileShape<kTokens>::kGroups, work.groups) * kPieceBytes;
  for (int at = static_cast<int>(threadIdx.x) * 16; at < TileShape<kTokens>::kGroups * kPieceBytes;
       at += kThreads * 16)
    ptx::CopyAsync16OrZero(stage + kRowTiles * kRowTileBytes + at,
                           at < bytes ? from + at : work.tokens, at < bytes);
}

// ---- Fragments

// Scales of a slice: lane 4 g + q receives byte q of the words of its quad's lanes, in the order of
// the MMA's groups. Of `words.x` those are of k-tile 0 (lanes 0 and 1 of a quad: rows g and g + 8)
// and 1 (lanes 2 and 3); of `words.y` of k-tiles 2 and 3.
__device__ __forceinline__ uint32_t TransposeScales(uint32_t word, int q) {
  const uint32_t neighbour = __shfl_xor_sync(~0u, word, 1);
  const uint32_t pairs = __byte_perm(word, neighbour, q % 2 == 0 ? 0x6240 : 0x3715);
  const uint32_t across = __shfl_xor_sync(~0u, pairs, 2);
  return __byte_perm(pairs, across, q < 2 ? 0x5140 : 0x3726);
}

struct RowTileScales {
  uint32_t of_tiles[2];  // k-tiles 2 i and 2 i + 1

  __device__ __forceinline__ RowTileScales(const std::byte* row_tile, int lane) {
    const uint2 words = reinterpret_cast<const uint2*>(row_tile + kCodeBytes)[lane];
    of_tiles[0] = TransposeScales(Ue4m3Scales(words.x), lane % 4);
    of_tiles[1] = TransposeScales(Ue4m3Scales(words.y), lane % 4);
  }
};

__device__ __forceinline__ void LoadA(const std::byte* row_tile, int u, int lane,
                                      uint32_t (&a)[4]) {
  const uint4 codes = reinterpret_cast<const uint4*>(row_tile)[u * 32 + lane];
  const BlockNibbles rows[2] = {Nibbles({codes.x, codes.y}), Nibbles({codes.z, codes.w})};
  const bool odd = lane % 2 != 0;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const uint32_t(&words)[2] = rows[row].words;
    const uint32_t other = __shfl_xor_sync(~0u, odd ? words[0] : words[1], 1);
    a[row] = odd ? other : words[0];
    a[row + 2] = odd ? words[1] : other;
  }
}

// C of a warp.
template <int kWarpGroups>
using Sums = float[kWarpRowTiles][kWarpGroups][4];

// k-tile kTile of the slice. b: of k-tiles kTile / 2 * 2 and the next.
template <int kTile, int kWarpGroups>
__device__ __forceinline__ void AddTile(const std::byte* const (&row_tiles)[kWarpRowTiles],
                                        const RowTileScales (&scales_a)[kWarpRowTiles],
                                        const uint4 (&b)[kWarpGroups],
                                        const uint4 (&scales_b)[kWarpGroups / 4], int lane,
                                        Sums<kWarpGroups>& c) {
  uint32_t a[kWarpRowTiles][4];
#pragma unroll
  for (int r = 0; r < kWarpRowTiles; ++r) LoadA(row_tiles[r], kTile, lane, a[r]);
  const auto multiply = [&]<int kGroup>() {
    const uint4& codes = b[kGroup];
    const uint32_t fragment[2] = {kTile % 2 == 0 ? codes.x : codes.z,
                                  kTile % 2 == 0 ? codes.y : codes.w};
    const uint4& words = scales_b[kGroup / 4];
    const uint32_t scale = kTile == 0   ? words.x
                           : kTile == 1 ? words.y
                           : kTile == 2 ? words.z
                                        : words.w;
#pragma unroll
    for (int r = 0; r < kWarpRowTiles; ++r)
      ptx::BlockScaledMma<kTile % 2, kGroup % 4>(c[r][kGroup], a[r], fragment,
                                                 scales_a[r].of_tiles[kTile / 2], scale);
  };
  multiply.template operator()<0>();
  multiply.template operator()<1>();
  multiply.template operator()<2>();
  multiply.template operator()<3>();
  if constexpr (kWarpGroups > 4) {
    multiply.template operator()<4>();
    multiply.template operator()<5>();
    multiply.template operator()<6>();
    multiply.template operator()<7>();
  }
}

// Lane 4 g + q holds the scales of token g of groups q and 4 + q, which the MMA selects by lane.
template <int kWarpGroups>
__device__ __forceinline__ void AddSlice(const std::byte* stage, int warp, int lane,
                                         Sums<kWarpGroups>& c) {
  const std::byte* row_tiles[kWarpRowTiles];
#pragma unroll
  for (int r = 0; r < kWarpRowTiles; ++r)
    row_tiles[r] = stage + (warp % kRowWarps * kWarpRowTiles + r) * kRowTileBytes;
  const std::byte* const pieces =
      stage + kRowTiles * kRowTileBytes + warp / kRowWarps * kWarpGroups * kPieceBytes;
  const RowTileScales scales_a[kWarpRowTiles] = {{row_tiles[0], lane}, {row_tiles[1], lane}};
  uint4 scales_b[kWarpGroups / 4];
#pragma unroll
  for (int i = 0; i < kWarpGroups / 4; ++i)
    scales_b[i] = *reinterpret_cast<const uint4*>(pieces + (4 * i + lane % 4) * kPieceBytes +
                                                  ScaleOffset(0, lane / 4));
  uint4 b[kWarpGroups];
  const auto load = [&](int pair) {
#pragma unroll
    for (int i = 0; i < kWarpGroups; ++i)
      b[i] =
          *reinterpret_cast<const uint4*>(pieces + i * kPieceBytes + CodeOffset(2 * pair, lane, 0));
  };
  load(0);
  AddTile<0, kWarpGroups>(row_tiles, scales_a, b, scales_b, lane, c);
  AddTile<1, kWarpGroups>(row_tiles, scales_a, b, scales_b, lane, c);
  load(1);
  AddTile<2, kWarpGroups>(row_tiles, scales_a, b, scales_b, lane, c);
  AddTile<3, kWarpGroups>(row_tiles, scales_a, b, scales_b, lane, c);
}

// ---- From the accumulators to y

struct RowEnd {
  float scale = 0.0f;
  float bias = -0.0f;  // changes nothing

  // bias_row: where the row's bias is.
  __device__ __forceinline__ RowEnd(const TileEnd& p, int row, int bias_row) {
    if (row >= p.n) return;
    // Row scales have a factor of 2^8 for the re-encoded scales of the BF16 decoder
    // (fragments.cuh).
    scale = p.row_scales[row] * (p.input_scale * 0x1p-8f);
    if (p.bias != nullptr) bias = p.bias[bias_row];
  }
  __device__ __forceinline__ float Apply(float sum) const { return sum * scale + bias; }
};

__device__ __forceinline__ void StoreF32(const TileEnd& p, int row, int token, float value) {
  if (row < p.n && token < p.m) p.y_f32[token * p.y_stride + row] = value;
}

// Of paired rows that are staged.
template <int kTokens>
__device__ __forceinline__ void StoreActivated(const DenseEnd& p, int first_row,
                                               const uint16_t* staging) {
  const bool aligned = p.y_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0;
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kRowTiles; i += kThreads) {
    const int token = i / kRowTiles;
    const int at = i % kRowTiles * kTileRows;
    if (token >= p.m || first_row + at >= p.n) continue;
    const auto* const pair = reinterpret_cast<const uint4*>(staging + token * kOutputStride + at);
    StoreBf16x8(p.y + token * p.y_stride + PairedOutput(first_row + at),
                Activate(p.activation, pair[0], pair[1]), kPairedRows, aligned);
  }
}

// BF16 goes through shared memory, so that neighbouring rows of W are stored together.
template <int kTokens, typename End>
__device__ __forceinline__ void Store(const End& p, int first_row, int warp, int lane,
                                      const Sums<TileShape<kTokens>::kWarpGroups>& c,
                                      uint16_t* staging) {
  constexpr int kWarpGroups = TileShape<kTokens>::kWarpGroups;
  constexpr bool kMayActivate = std::is_same_v<End, DenseEnd>;
#pragma unroll
  for (int r = 0; r < kWarpRowTiles; ++r) {
    const int row = (warp % kRowWarps * kWarpRowTiles + r) * kTileRows + lane / 4;
    const auto end_of = [&](int of) {
      if constexpr (kMayActivate)
        return RowEnd(p, of, p.activates ? PairedStackRow(of, p.n / 2) : of);
      return RowEnd(p, of, of);
    };
    const RowEnd low = end_of(first_row + row), high = end_of(first_row + row + 8);
#pragma unroll
    for (int i = 0; i < kWarpGroups; ++i)
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int token =
            warp / kRowWarps * kWarpGroups * kGroupTokens + i * kGroupTokens + lane % 4 * 2 + v % 2;
        const float value = (v < 2 ? low : high).Apply(c[r][i][v]);
        const int at = row + v / 2 * 8;
        if (p.y_f32 != nullptr) {
          StoreF32(p, first_row + at, token, value);
        } else {
          staging[token * kOutputStride + at] =
              static_cast<uint16_t>(ptx::PackBf16(value, 0.0f) & 0xFFFF);
        }
      }
  }
  if (p.y_f32 != nullptr) return;
  __syncthreads();
  if constexpr (kMayActivate)
    if (p.activates) return StoreActivated<kTokens>(p, first_row, staging);
  constexpr int kVectors = kRows / 8;
  const bool aligned = p.y_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0;
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kVectors; i += kThreads) {
    const int token = i / kVectors;
    const int row = first_row + i % kVectors * 8;
    if (token >= p.m || row >= p.n) continue;
    const uint16_t* const from = staging + token * kOutputStride + i % kVectors * 8;
    uint16_t* const to = p.y + token * p.y_stride + row;
    uint4 values = *reinterpret_cast<const uint4*>(from);
    const int64_t count = p.n - row;
    const bool whole = aligned && count >= 8;
    if (p.add) values = AddBf16x8(LoadBf16x8(to, count, whole), values);
    StoreBf16x8(to, values, count, whole);
  }
}

// The whole tile. before_tokens() runs when the first weights are on their way. ring: kRingBytes.
template <int kTokens, typename End, typename BeforeTokens>
__device__ __forceinline__ void RunTile(const WeightTiles& like, const TileWork& work,
                                        const End& end, std::byte* ring,
                                        const BeforeTokens& before_tokens) {
  using Shape = TileShape<kTokens>;
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int slices = like.slices();
  CopyWeights(like, work, 0, ring);
  before_tokens();
  CopyTokens<kTokens>(work, 0, ring);
  ptx::CommitCopies();

  Sums<Shape::kWarpGroups> c = {};
  for (int slice = 0; slice < slices; ++slice) {
    std::byte* const next = ring + (slice + 1) % kStages * Shape::kStageBytes;
    if (slice + 1 < slices) {
      CopyWeights(like, work, slice + 1, next);
      CopyTokens<kTokens>(work, slice + 1, next);
    }
    ptx::CommitCopies();
    ptx::WaitForCopies<1>();
    __syncthreads();
    AddSlice<Shape::kWarpGroups>(ring + slice % kStages * Shape::kStageBytes, warp, lane, c);
    __syncthreads();
  }
  Store<kTokens>(end, work.first_row_tile * kTileRows, warp, lane, c,
                 reinterpret_cast<uint16_t*>(ring));
}

#endif  // NIBBLE_COMPILE_W4A4

}  // namespace nibble::kernels::cuda::w4a4
