#include "kernels/cuda/w4a4/w4a4.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/weight.h"
#include "kernels/cuda/norm/norm.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/block_scaled_mma.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/w4a4/order.h"
#include "kernels/cuda/w4a4/tokens.h"

// Elsewhere the kernel would never run.
#if defined(NIBBLE_HAVE_BLOCK_SCALED_MMA) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define NIBBLE_COMPILE_W4A4 1
#endif

namespace nibble::kernels::cuda {
namespace w4a4 {
namespace {

// A CTA: 128 rows by 128 tokens over all of K; a warp 32 rows by 64 tokens. Both come slice by
// slice through a ring of two stages: 74 KB, of the 99 KB that SM 12.x has.
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kRowTiles = 8;
constexpr int kRows = kRowTiles * kTileRows;
constexpr int kTokens = 128;
constexpr int kTokenGroups = kTokens / kGroupTokens;

constexpr int kCodeBytes = kSliceTiles * CodeBytes(TileFormat::kNvfp4);
constexpr int kScaleBytes = ScaleBytes(TileFormat::kNvfp4, 0);
constexpr int kRowTileBytes = kCodeBytes + kScaleBytes;
constexpr int kStages = 2;
constexpr int kStageBytes = kRowTiles * kRowTileBytes + kTokenGroups * kPieceBytes;
constexpr int kRingBytes = kStages * kStageBytes;
// Outputs on their way: (token, rows) in BF16, eight more so that rows of a column spread over
// banks.
constexpr int kOutputStride = kRows + 8;
static_assert(kTokens * kOutputStride * 2 <= kRingBytes);

struct Args {
  WeightTiles weight;
  const std::byte* tokens = nullptr;
  int groups = 0;
  int m = 0;
  float input_scale = 1.0f;
  const float* bias = nullptr;
  uint16_t* y = nullptr;
  float* y_f32 = nullptr;
  int64_t y_stride = 0;
  bool add = false;
};

#ifdef NIBBLE_COMPILE_W4A4

// Of a warp.
constexpr int kWarpRowTiles = 2;
constexpr int kWarpGroups = 8;  // of 8 tokens
constexpr int kRowWarps = kRowTiles / kWarpRowTiles;

// ---- Copies, 16 bytes per thread and turn

__device__ __forceinline__ void CopyWeights(const Args& p, int slice, std::byte* stage) {
  constexpr int kVectors = kRowTileBytes / 16;
  const int tiles = p.weight.tiles_of(slice);
  const int codes = tiles * CodeBytes(TileFormat::kNvfp4);
  const int first = static_cast<int>(blockIdx.y) * kRowTiles;
  for (int i = static_cast<int>(threadIdx.x); i < kRowTiles * kVectors; i += kThreads) {
    const int row_tile = min(first + i / kVectors, p.weight.row_tiles - 1);
    const int at = i % kVectors * 16;
    // The last slice may be short: its scales follow its codes, in the ring they keep their place.
    const int from = at < kCodeBytes ? at : at - kCodeBytes + codes;
    const std::byte* source = p.weight.data + row_tile * p.weight.row_tile_bytes +
                              int64_t{slice} * p.weight.slice_stride() + from;
    const bool there = at >= kCodeBytes || at < codes;
    ptx::CopyAsync16OrZero(stage + i * 16, there ? source : p.weight.data, there);
  }
}

__device__ __forceinline__ void CopyTokens(const Args& p, int slice, std::byte* stage) {
  const int first = static_cast<int>(blockIdx.x) * kTokenGroups;
  const std::byte* const from = p.tokens + (int64_t{slice} * p.groups + first) * kPieceBytes;
  const int bytes = min(kTokenGroups, p.groups - first) * kPieceBytes;
  for (int at = static_cast<int>(threadIdx.x) * 16; at < kTokenGroups * kPieceBytes;
       at += kThreads * 16)
    ptx::CopyAsync16OrZero(stage + kRowTiles * kRowTileBytes + at,
                           at < bytes ? from + at : p.tokens, at < bytes);
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
  const uint32_t words[2][2] = {{Nibbles(codes.x), Nibbles(codes.y)},
                                {Nibbles(codes.z), Nibbles(codes.w)}};
  const bool odd = lane % 2 != 0;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const uint32_t other = __shfl_xor_sync(~0u, odd ? words[row][0] : words[row][1], 1);
    a[row] = odd ? other : words[row][0];
    a[row + 2] = odd ? words[row][1] : other;
  }
}

// C of a warp.
using Sums = float[kWarpRowTiles][kWarpGroups][4];

// k-tile kTile of the slice. b: of k-tiles kTile / 2 * 2 and the next.
template <int kTile>
__device__ __forceinline__ void AddTile(const std::byte* const (&row_tiles)[kWarpRowTiles],
                                        const RowTileScales (&scales_a)[kWarpRowTiles],
                                        const uint4 (&b)[kWarpGroups], const uint4 (&scales_b)[2],
                                        int lane, Sums& c) {
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
  multiply.template operator()<4>();
  multiply.template operator()<5>();
  multiply.template operator()<6>();
  multiply.template operator()<7>();
}

// Lane 4 g + q holds the scales of token g of groups q and 4 + q, which the MMA selects by lane.
__device__ __forceinline__ void AddSlice(const std::byte* stage, int warp, int lane, Sums& c) {
  const std::byte* row_tiles[kWarpRowTiles];
#pragma unroll
  for (int r = 0; r < kWarpRowTiles; ++r)
    row_tiles[r] = stage + (warp % kRowWarps * kWarpRowTiles + r) * kRowTileBytes;
  const std::byte* const pieces =
      stage + kRowTiles * kRowTileBytes + warp / kRowWarps * kWarpGroups * kPieceBytes;
  const RowTileScales scales_a[kWarpRowTiles] = {{row_tiles[0], lane}, {row_tiles[1], lane}};
  uint4 scales_b[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
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
  AddTile<0>(row_tiles, scales_a, b, scales_b, lane, c);
  AddTile<1>(row_tiles, scales_a, b, scales_b, lane, c);
  load(1);
  AddTile<2>(row_tiles, scales_a, b, scales_b, lane, c);
  AddTile<3>(row_tiles, scales_a, b, scales_b, lane, c);
}

// ---- From the accumulators to y

struct RowEnd {
  float scale = 0.0f;
  float bias = -0.0f;  // changes nothing

  __device__ __forceinline__ RowEnd(const Args& p, int row) {
    if (row >= p.weight.n) return;
    // Row scales have a factor of 2^8 for the re-encoded scales of the BF16 decoder
    // (fragments.cuh).
    scale = p.weight.row_scales[row] * (p.input_scale * 0x1p-8f);
    if (p.bias != nullptr) bias = p.bias[row];
  }
  __device__ __forceinline__ float Apply(float sum) const { return sum * scale + bias; }
};

__device__ __forceinline__ void StoreF32(const Args& p, int row, int token, float value) {
  if (row < p.weight.n && token < p.m) p.y_f32[token * p.y_stride + row] = value;
}

// BF16 goes through shared memory, so that neighbouring rows of W are stored together.
__device__ __forceinline__ void Store(const Args& p, int warp, int lane, const Sums& c,
                                      uint16_t* staging) {
  const int first_row = static_cast<int>(blockIdx.y) * kRows;
  const int first_token = static_cast<int>(blockIdx.x) * kTokens;
#pragma unroll
  for (int r = 0; r < kWarpRowTiles; ++r) {
    const int row = (warp % kRowWarps * kWarpRowTiles + r) * kTileRows + lane / 4;
    const RowEnd low(p, first_row + row), high(p, first_row + row + 8);
#pragma unroll
    for (int i = 0; i < kWarpGroups; ++i)
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int token =
            warp / kRowWarps * kWarpGroups * kGroupTokens + i * kGroupTokens + lane % 4 * 2 + v % 2;
        const float value = (v < 2 ? low : high).Apply(c[r][i][v]);
        const int at = row + v / 2 * 8;
        if (p.y_f32 != nullptr) {
          StoreF32(p, first_row + at, first_token + token, value);
        } else {
          staging[token * kOutputStride + at] =
              static_cast<uint16_t>(ptx::PackBf16(value, 0.0f) & 0xFFFF);
        }
      }
  }
  if (p.y_f32 != nullptr) return;
  __syncthreads();
  constexpr int kVectors = kRows / 8;
  const bool aligned = p.y_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0;
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kVectors; i += kThreads) {
    const int token = i / kVectors;
    const int row = first_row + i % kVectors * 8;
    if (first_token + token >= p.m || row >= p.weight.n) continue;
    const uint16_t* const from = staging + token * kOutputStride + i % kVectors * 8;
    uint16_t* const to = p.y + (first_token + token) * p.y_stride + row;
    uint4 values = *reinterpret_cast<const uint4*>(from);
    const int64_t count = p.weight.n - row;
    const bool whole = aligned && count >= 8;
    if (p.add) values = AddBf16x8(LoadBf16x8(to, count, whole), values);
    StoreBf16x8(to, values, count, whole);
  }
}

#endif  // NIBBLE_COMPILE_W4A4

__global__ void __launch_bounds__(kThreads) LinearKernel(const __grid_constant__ Args p) {
#ifdef NIBBLE_COMPILE_W4A4
  extern __shared__ __align__(16) std::byte ring[];
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int slices = p.weight.slices();
  CopyWeights(p, 0, ring);
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  CopyTokens(p, 0, ring);
  ptx::CommitCopies();

  Sums c = {};
  for (int slice = 0; slice < slices; ++slice) {
    std::byte* const next = ring + (slice + 1) % kStages * kStageBytes;
    if (slice + 1 < slices) {
      CopyWeights(p, slice + 1, next);
      CopyTokens(p, slice + 1, next);
    }
    ptx::CommitCopies();
    ptx::WaitForCopies<1>();
    __syncthreads();
    AddSlice(ring + slice % kStages * kStageBytes, warp, lane, c);
    __syncthreads();
  }
  Store(p, warp, lane, c, reinterpret_cast<uint16_t*>(ring));
#endif
}

// Bounds the workspace.
constexpr int64_t kTokensAtOnce = 2048;

// What precedes the quantised tokens in the workspace.
size_t NormedBytes(int64_t m, int64_t k) {
  return static_cast<size_t>((m * k * 2 + 255) / 256 * 256);
}

unsigned Blocks(int64_t items, int per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

}  // namespace
}  // namespace w4a4

bool HasW4a4() { return HasBlockScaledMma(CurrentCapability()); }
bool HasEmulatedW4a4() { return CurrentDevice().major == 9; }

size_t LinearW4a4Workspace(int64_t max_m, int64_t max_k) {
  const int64_t m = std::min(max_m, w4a4::kTokensAtOnce);
  return w4a4::NormedBytes(m, max_k) + static_cast<size_t>(w4a4::TokenBytes(m, max_k));
}

void LinearW4a4(const OpContext& context, const LinearParams& params) {
  using namespace w4a4;
  const CudaWeight& weight = AsCuda(*params.weight);
  const int64_t k = weight.k();
  NIBBLE_CHECK(weight.input_scale() > 0.0f, "W4A4 of a weight without input_scale");
  NIBBLE_CHECK(LinearW4a4Workspace(params.m, k) <= context.workspace_bytes,
               "W4A4 linear of {} tokens: workspace of {} bytes", params.m,
               context.workspace_bytes);
  for (int64_t token = 0; token < params.m; token += kTokensAtOnce) {
    const int64_t m = std::min(kTokensAtOnce, params.m - token);
    QuantizeParams rows = {.x = params.x + token * params.x_stride,
                           .x_stride = params.x_stride,
                           .m = m,
                           .k = k,
                           .column_order = weight.column_order(),
                           .input_multiplier = weight.input_multiplier(),
                           .inverse_scale = 1.0f / weight.input_scale()};
    std::byte* quantized = context.workspace;
    if (params.norm.weight != nullptr) {
      auto* const normed = reinterpret_cast<uint16_t*>(context.workspace);
      quantized += NormedBytes(m, k);
      NormRows(context, params.norm, rows.x, rows.x_stride, m, k, normed);
      rows.x = normed;
      rows.x_stride = k;
    }
    QuantizeTokens(rows, quantized, context.stream);
    const int64_t first = token * params.y_stride;
    const Args args = {.weight = weight.tiles(),
                       .tokens = quantized,
                       .groups = static_cast<int>(Groups(m)),
                       .m = static_cast<int>(m),
                       .input_scale = weight.input_scale(),
                       .bias = params.bias,
                       .y = params.y == nullptr ? nullptr : params.y + first,
                       .y_f32 = params.y_f32 == nullptr ? nullptr : params.y_f32 + first,
                       .y_stride = params.y_stride,
                       .add = params.add};
    LaunchPdl(LinearKernel, dim3(Blocks(m, kTokens), Blocks(weight.n(), kRows)), kThreads,
              kRingBytes, StreamOf(context), args);
  }
}

}  // namespace nibble::kernels::cuda
