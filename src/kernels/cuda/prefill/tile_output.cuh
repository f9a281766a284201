// From the accumulators of a tile (tile_sums.cuh) to y: which tile it is, what its sums become and
// how they are stored.
#pragma once

#include <type_traits>

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/bf16_vector.cuh"
#include "kernels/cuda/prefill/prefill.h"
#include "kernels/cuda/prefill/tile_sums.cuh"
#include "kernels/cuda/prefill/token_places.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace nibble::kernels::cuda {

// One tile: rows [16 * row_tile, ...) of a weight by tokens [first_token, + tokens).
struct TileWork {
  const std::byte* weight = nullptr;  // row tile 0
  const float* row_scales = nullptr;
  const float* bias = nullptr;  // or null
  int row_tile = 0;
  int first_token = 0;
  int tokens = 0;  // at most a tile's
};

// y or y_f32: (token, n). Rows of W from n on are not stored.
struct TileOutput {
  uint16_t* y = nullptr;
  float* y_f32 = nullptr;
  int64_t stride = 0;
  int n = 0;
  bool add = false;  // to y
};

// That of a dense linear, which may end with an activation.
struct DenseOutput : TileOutput {
  int f = 0;  // outputs, where rows of W are paired and `activation` makes y of them; else 0
  Activation activation;
};

// n: rows of W that are stored.
__device__ __forceinline__ DenseOutput DenseOutputOf(const PrefillParams& p, int n) {
  return {{p.y, p.y_f32, p.y_stride, n, p.add}, p.activates ? p.weight.n / 2 : 0, p.activation};
}

// And y may be laid out for the next linear, if an activation makes it.
struct LayingOutput : DenseOutput {
  TokenPlaces places;
};

__device__ __forceinline__ LayingOutput LayingOutputOf(const PrefillParams& p, int n) {
  return {DenseOutputOf(p, n), PlacesOf(p.y, p.y_layout, p.weight.n / 2)};
}

#ifdef NIBBLE_HAVE_WGMMA

// What becomes of a sum.
struct RowEnd {
  float scale;
  float bias;

  __device__ __forceinline__ float Apply(float sum) const { return sum * scale + bias; }
};

// Where the sums of a warpgroup go: rows from first_row on, tokens [first, end) of y.
struct TilePlace {
  int first_row;
  int first;
  int end;
};

// What a thread's accumulators become, of rows g and g + 8 of its warp's row tile, and where all
// of the warpgroup's go.
struct TileEnd {
  struct {
    RowEnd low;
    RowEnd high;
  } rows;
  TilePlace place;
};

// Where the bias of a row is.
__device__ __forceinline__ int BiasRow(const TileOutput&, int row) { return row; }
__device__ __forceinline__ int BiasRow(const DenseOutput& out, int row) {
  return out.f > 0 ? PairedStackRow(row, out.f) : row;
}

// Without a bias -0, which changes nothing.
template <typename Output>
__device__ __forceinline__ RowEnd EndOf(const TileWork& work, const Output& out, int row) {
  if (row >= out.n) return {0.0f, 0.0f};
  return {work.row_scales[row], work.bias != nullptr ? work.bias[BiasRow(out, row)] : -0.0f};
}

// Of the warpgroup with these 64 rows and kN tokens of a tile.
template <int kN>
__device__ __forceinline__ TilePlace PlaceOf(const TileWork& work, int row_part, int token_part) {
  return {.first_row = work.row_tile * kTileRows + row_part * kWarpgroupRows,
          .first = work.first_token + token_part * kN,
          .end = work.first_token + work.tokens};
}
template <int kN, typename Output>
__device__ __forceinline__ TileEnd EndOf(const TileWork& work, const Output& out, int row_part,
                                         int token_part) {
  const TilePlace place = PlaceOf<kN>(work, row_part, token_part);
  const int row =
      place.first_row + threadIdx.x % kWarpgroupThreads / 32 * kTileRows + threadIdx.x % 32 / 4;
  return {.rows = {EndOf(work, out, row), EndOf(work, out, row + 8)}, .place = place};
}

// FP32 straight from a warpgroup's accumulators.
template <int kN>
__device__ __forceinline__ void StoreF32(const TileOutput& out, const float (&total)[kN / 2],
                                         const TileEnd& tile) {
  const int lane = threadIdx.x % 32;
  const auto [first_row, first, end] = tile.place;
  const int row = first_row + threadIdx.x % kWarpgroupThreads / 32 * kTileRows + lane / 4;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    const int token = first + i / 4 * 8 + lane % 4 * 2 + i % 2;
    const int n = row + i % 4 / 2 * 8;
    if (token < end && n < out.n)
      out.y_f32[token * out.stride + n] =
          (i % 4 < 2 ? tile.rows.low : tile.rows.high).Apply(total[i]);
  }
}

// Or by way of `staging`, in two halves, which take as many bytes as BF16: (kN / 2 tokens, 64
// rows). Pairs of tokens have their rows 8 apart, so that no access meets itself in a bank.
template <int kN>
__device__ __forceinline__ void StoreStagedF32(const TileOutput& out, const float (&total)[kN / 2],
                                               const TileEnd& tile, std::byte* staging,
                                               int barrier) {
  constexpr int kHalf = kN / 2;
  const int thread = threadIdx.x % kWarpgroupThreads;
  const int lane = thread % 32;
  const int row = thread / 32 * kTileRows + lane / 4;
  const int chunk = thread % 16;
  const int n = tile.place.first_row + 4 * chunk;
  const bool whole =
      out.stride % 4 == 0 && reinterpret_cast<uintptr_t>(out.y_f32) % 16 == 0 && n + 4 <= out.n;
  auto* const staged = reinterpret_cast<float*>(staging);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kHalf / 2; ++i) {
      const int token = i / 4 * 8 + lane % 4 * 2 + i % 2;
      const int staged_row = (row + i % 4 / 2 * 8) ^ lane % 4 * 8;
      const RowEnd& row_end = i % 4 < 2 ? tile.rows.low : tile.rows.high;
      staged[token * kWarpgroupRows + staged_row] = row_end.Apply(total[half * (kHalf / 2) + i]);
    }
    ptx::SyncThreads(barrier, kWarpgroupThreads);
    const int first = tile.place.first + half * kHalf;
    for (int t = thread / 16; t < kHalf && first + t < tile.place.end;
         t += kWarpgroupThreads / 16) {
      const int staged_row = (4 * chunk) ^ t / 2 % 4 * 8;
      const float4 values =
          *reinterpret_cast<const float4*>(staged + t * kWarpgroupRows + staged_row);
      float* const y = out.y_f32 + (first + t) * out.stride + n;
      if (whole) {
        *reinterpret_cast<float4*>(y) = values;
      } else {
        const float each[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (n + i < out.n) y[i] = each[i];
      }
    }
    ptx::SyncThreads(barrier, kWarpgroupThreads);  // before the next values
  }
}

// BF16 goes through shared memory, (kN tokens, 64 rows) in the swizzle of tokens.h, so that
// neighbouring rows of W are stored together. By a warpgroup:
template <int kN>
__device__ __forceinline__ void Stage(const float (&total)[kN / 2], const TileEnd& tile,
                                      std::byte* staging) {
  const int warp = threadIdx.x % kWarpgroupThreads / 32;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kN / 8; i += 2) {
    uint32_t values[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float* pair = total + 4 * (i + m / 2) + 2 * (m % 2);
      const RowEnd& row_end = m % 2 == 0 ? tile.rows.low : tile.rows.high;
      values[m] = ptx::PackBf16(row_end.Apply(pair[0]), row_end.Apply(pair[1]));
    }
    const int token = 8 * (i + lane / 16) + lane % 8;
    const int chunk = 2 * warp + lane / 8 % 2;
    ptx::StoreMatricesTransposed(staging + token * 128 + (chunk ^ token % 8) * 16, values);
  }
}

// Of paired rows: of each two chunks the first has gates, the second what they let through.
template <int kN, int kThreads, typename Output>
__device__ __forceinline__ void StoreActivated(const Output& out, const TilePlace& tile,
                                               const std::byte* staging) {
  constexpr int kPairs = kWarpgroupRows / kTileRows;
  const int thread = threadIdx.x % kThreads;
  const int pair = thread % kPairs;
  const int row = tile.first_row + pair * kTileRows;
  if (row >= out.n) return;
  const bool aligned = out.stride % 8 == 0 && reinterpret_cast<uintptr_t>(out.y) % 16 == 0;
  const int tokens = min(kN, tile.end - tile.first);
#pragma unroll 1
  for (int t = thread / kPairs; t < tokens; t += kThreads / kPairs) {
    const std::byte* const staged = staging + t * 128;
    const auto chunk = [&](int index) {
      return *reinterpret_cast<const uint4*>(staged + (index ^ t % 8) * 16);
    };
    const uint4 values = Activate(out.activation, chunk(2 * pair), chunk(2 * pair + 1));
    if constexpr (std::is_same_v<Output, LayingOutput>) {
      if (out.places.data != nullptr) {
        out.places.Store8(tile.first + t, PairedOutput(row), values);
        continue;
      }
    }
    StoreBf16x8(out.y + (tile.first + t) * out.stride + PairedOutput(row), values, kPairedRows,
                aligned);
  }
}

// By kThreads threads, once it is staged.
template <int kN, int kThreads, typename Output>
__device__ __forceinline__ void StoreStaged(const Output& out, const TilePlace& tile,
                                            const std::byte* staging) {
  if constexpr (std::is_base_of_v<DenseOutput, Output>)
    if (out.f > 0) return StoreActivated<kN, kThreads>(out, tile, staging);
  constexpr int kStep = kThreads / 8;  // tokens at a time
  // Of these, so that loads do not wait for one another; what a single warp's registers hold.
  constexpr int kAtOnce = kThreads > 32 ? 4 : 2;
  const int thread = threadIdx.x % kThreads;
  const int chunk = thread % 8;
  const int n = tile.first_row + 8 * chunk;
  const int tokens = min(kN, tile.end - tile.first);
  const bool whole =
      out.stride % 8 == 0 && reinterpret_cast<uintptr_t>(out.y) % 16 == 0 && n + 8 <= out.n;
  for (int t = thread / 8; t < tokens; t += kAtOnce * kStep) {
    uint16_t* const y = out.y + (tile.first + t) * out.stride + n;
    uint4 values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int token = t + i * kStep;
      values[i] = *reinterpret_cast<const uint4*>(staging + min(token, kN - 1) * 128 +
                                                  (chunk ^ token % 8) * 16);
    }
    if (out.add) {
      uint4 old[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        old[i] = t + i * kStep < tokens ? LoadBf16x8(y + i * kStep * out.stride, out.n - n, whole)
                                        : uint4{};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) values[i] = AddBf16x8(old[i], values[i]);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (t + i * kStep < tokens)
        StoreBf16x8(y + i * kStep * out.stride, values[i], out.n - n, whole);
  }
}

// All of it by the warpgroup itself. kStagesF32: where FP32 is what is stored most.
template <int kN, bool kStagesF32 = false, typename Output>
__device__ __forceinline__ void Store(const Output& out, const float (&total)[kN / 2],
                                      const TileEnd& tile, std::byte* staging, int barrier) {
  if (out.y_f32 != nullptr) {
    if constexpr (kStagesF32) return StoreStagedF32<kN>(out, total, tile, staging, barrier);
    return StoreF32<kN>(out, total, tile);
  }
  Stage<kN>(total, tile, staging);
  ptx::SyncThreads(barrier, kWarpgroupThreads);
  StoreStaged<kN, kWarpgroupThreads>(out, tile.place, staging);
  ptx::SyncThreads(barrier, kWarpgroupThreads);  // before the next tile's values
}

#endif  // NIBBLE_HAVE_WGMMA

}  // namespace nibble::kernels::cuda
