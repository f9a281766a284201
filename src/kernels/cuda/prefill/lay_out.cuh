// Laying out tokens (tokens.h) beside the products of those that lie there already: the bands that
// PrepareTokens leaves. A warp of each CTA takes items of 8 tokens and kItemColumns columns in
// turn, band by band, and counts them; who copies tokens of a band waits for all of its items.
#pragma once

#include "kernels/cuda/prefill/tokens.h"
#include "kernels/cuda/ptx/async_copy.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kItemColumns = 512;
inline constexpr int kItemTiles = kItemColumns / kTileColumns;
// Of a token's columns in shared memory: column tiles of 128 bytes are kept apart, so that the
// words of a chunk of four of them lie in all banks.
inline constexpr int kRawTileBytes = 160;
inline constexpr int kRawRowBytes = kItemTiles * kRawTileBytes;
// Tokens that are brought there at a time.
inline constexpr int kRawTokens = 4;

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ int LoadAcquire(const int32_t* count) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(count) : "memory");
  return value;
}

// Behind writes of the warp, which are visible to whom sees the count.
__device__ __forceinline__ void AddRelease(int32_t* count, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(count), "r"(value) : "memory");
}

// Between ordinary stores to global memory and bulk copies of it.
__device__ __forceinline__ void FenceAsyncProxyGlobal() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

__device__ __forceinline__ int ItemsOfRow(const PreparedTokens& x) {
  return (x.tiles + kItemTiles - 1) / kItemTiles;
}

// A warp, `worker` of `workers`. raw: kRows rows of kRawRowBytes.
template <int kRows>
__device__ __forceinline__ void LayOut(const PreparedTokens& x, std::byte* raw, int worker,
                                       int workers) {
  static_assert(kRows % kRawTokens == 0 && kRows > kRawTokens);
  constexpr int kParts = kRows / kRawTokens;
  const RestOfTokens& rest = x.rest;
  if (rest.x == nullptr) return;
  const int lane = threadIdx.x % 32;
  const int tile = lane / 8, chunk = lane % 8;  // of four tiles: half an item
  const int items = ItemsOfRow(x);

  struct Item {
    int group;
    int item;  // of the group
  };
  const int step_groups = workers / items, step_items = workers % items;
  const auto next = [&](Item& at) {
    at.group += step_groups;
    at.item += step_items;
    if (at.item >= items) {
      at.item -= items;
      ++at.group;
    }
  };
  Item now = {rest.band_groups + worker / items, worker % items};
  Item ahead = now;
  int ahead_part = 0;  // of its two
  int fill = 0;
  const auto copy = [&] {
    if (ahead.group < x.groups) {
      const int token = ahead.group * kGroupTokens + ahead_part * kRawTokens;
      const int column = ahead.item * kItemColumns + lane * 8;
      const uint16_t* from = rest.x + token * rest.x_stride + column;
      std::byte* const to =
          raw + fill * (kRawTokens * kRawRowBytes) + tile * kRawTileBytes + chunk * 16;
#pragma unroll
      for (int i = 0; i < kRawTokens; ++i, from += rest.x_stride) {
        const bool there = token + i < rest.m;
        ptx::CopyAsync16OrZero(to + i * kRawRowBytes, from, there && column < rest.k);
        ptx::CopyAsync16OrZero(to + i * kRawRowBytes + 4 * kRawTileBytes, from + 256,
                               there && column + 256 < rest.k);
      }
      ahead_part ^= 1;
      if (ahead_part == 0) next(ahead);
    }
    ptx::CommitCopies();
    if (++fill == kParts) fill = 0;
  };
  for (int i = 0; i < kParts - 1; ++i) copy();
  int read = 0;
  const int64_t half = int64_t{4} * x.groups * kPieceBytes;
  for (; now.group < x.groups; next(now)) {
    std::byte* const to =
        x.data + (int64_t{now.item * kItemTiles + tile} * x.groups + now.group) * kPieceBytes;
    const int tiles = x.tiles - now.item * kItemTiles - tile;  // from the lane's on
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      copy();
      ptx::WaitForCopies<kParts - 1>();
      __syncwarp();
      const std::byte* const from =
          raw + read * (kRawTokens * kRawRowBytes) + tile * kRawTileBytes + chunk * 4;
#pragma unroll
      for (int i = 0; i < kRawTokens; ++i) {
        const int row = part * kRawTokens + i;
        uint32_t v[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
          for (int q = 0; q < 4; ++q)
            v[h][q] = *reinterpret_cast<const uint32_t*>(from + i * kRawRowBytes +
                                                         h * (4 * kRawTileBytes) + 32 * q);
        std::byte* const place = to + row * 128 + (chunk ^ row) * 16;
        if (tiles > 0)
          *reinterpret_cast<uint4*>(place) = make_uint4(v[0][0], v[0][1], v[0][2], v[0][3]);
        if (tiles > 4)
          *reinterpret_cast<uint4*>(place + half) = make_uint4(v[1][0], v[1][1], v[1][2], v[1][3]);
      }
      __syncwarp();
      if (++read == kParts) read = 0;
    }
    if (lane == 0) {
      FenceAsyncProxyGlobal();
      AddRelease(rest.done + now.group / rest.band_groups, 1);
    }
  }
}

// The bands that a warp knows to lie there.
class LaidOut {
 public:
  // Before bulk copies of a token's band.
  __device__ __forceinline__ void Await(const PreparedTokens& x, int token) {
    const RestOfTokens& rest = x.rest;
    if (rest.x == nullptr || token < known_tokens_) return;
    const int band = token / (rest.band_groups * kGroupTokens);
    known_tokens_ = (band + 1) * rest.band_groups * kGroupTokens;
    if (band == 0) return;
    const int groups = min(rest.band_groups, x.groups - band * rest.band_groups);
    while (LoadAcquire(rest.done + band) < groups * ItemsOfRow(x)) __nanosleep(100);
    FenceAsyncProxyGlobal();
  }

 private:
  int known_tokens_ = 0;  // tiles come in ascending order of bands
};

#endif

}  // namespace nibble::kernels::cuda
