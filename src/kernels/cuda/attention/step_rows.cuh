// Keys and values of a decode step in shared memory: where a round's rows lie in each format of the
// cache, how a warp copies them there, and what the MMAs take from them.
#pragma once

#include <utility>

#include "kernels/cuda/attention/nvfp4_block.cuh"
#include "kernels/cuda/attention/step_problem.cuh"
#include "kernels/cuda/ptx/copy_parts.cuh"
#include "kernels/cuda/ptx/ldmatrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace nibble::kernels::cuda {

// Of a row of the cache.
template <KvFormat kFormat, int kDimAtoms>
struct StepRowBytes {
  static constexpr int kNumbers = kDimAtoms * (kFormat == KvFormat::kBf16  ? 32
                                               : kFormat == KvFormat::kFp8 ? 16
                                                                           : 8);
  static constexpr int kScales = kFormat == KvFormat::kNvfp4 ? kDimAtoms : 0;  // another place
  static constexpr int kAll = kNumbers + kScales;
};

// kRoundKeys rows, of which a warp has kWarpKeys: first all rows' numbers, then their scales.
template <KvFormat kFormat, int kDimAtoms, int kRoundKeys, int kWarpKeys>
struct StepRows {
  using Bytes = StepRowBytes<kFormat, kDimAtoms>;
  static constexpr bool kFp8 = kFormat == KvFormat::kFp8;
  static constexpr bool kNvfp4 = kFormat == KvFormat::kNvfp4;
  static constexpr int kRowBytes = Bytes::kNumbers;
  static constexpr int kBufferBytes = kRoundKeys * Bytes::kAll;
  static constexpr int kPieces = kRowBytes / 16;
  static constexpr int kKeyTiles = kWarpKeys / 16;
  static constexpr int kQueryPitch = kDimAtoms * 32 + 16;

  // Scales of a round's keys and values as Nvfp4Scales makes them.
  struct Scales {
    uint32_t keys[kNvfp4 ? kRoundKeys * kDimAtoms / 2 : 1];  // (keys, atoms) BF16
    // (atoms, keys / 32, lanes of a quad, 4, 2) BF16: keys 8 i + 2 q and 8 i + 2 q + 1 of 32
    uint4 values[kNvfp4 ? kRoundKeys * kDimAtoms / 8 : 1];
  };

  int warp, lane;

  __device__ __forceinline__ StepRows()
      : warp(static_cast<int>(threadIdx.x) / 32), lane(static_cast<int>(threadIdx.x) % 32) {}

  // Where 16 bytes of a key's row lie in a buffer: pieces change places so that ldmatrix, which
  // reads the same piece of eight keys, meets no conflicts.
  __device__ __forceinline__ static int PieceAt(int key, int piece) {
    const int turn = kPieces >= 8 ? key % 8 : key / (8 / kPieces) % kPieces;
    return key * kRowBytes + (piece ^ turn) * 16;
  }

  // ---- Copies ----

  // 16 neighbouring keys, which lie in one page, from the cache or, where they are not of `cached`,
  // zeros: rows `row` and following of the buffer. head_page: the page's place times the heads,
  // plus the head.
  __device__ __forceinline__ void CopyRun(uint8_t* to, int row, const uint8_t* cache, int head_page,
                                          int page_shift, int first, KeyRange cached) const {
    const uint8_t* page = cache + int64_t{head_page} * (Bytes::kAll << page_shift);
    const int place = first & ((1 << page_shift) - 1);
    const uint8_t* from = page + (place * kRowBytes + lane * 16);
    const uint32_t rows = ptx::SharedAddress(to) + row * kRowBytes;
    if (first >= cached.first && first + 15 <= cached.last) {
      CopyPieces<true>(rows, from, first, cached, std::make_integer_sequence<int, kPieces / 2>());
    } else {
      CopyPieces<false>(rows, from, first, cached, std::make_integer_sequence<int, kPieces / 2>());
    }
    if constexpr (kNvfp4) {
      if (lane >= Bytes::kScales) return;
      constexpr int kPieceKeys = 16 / Bytes::kScales;
      const int key = first + lane * kPieceKeys;
      ptx::CopyAsync16OrZero(
          to + kRoundKeys * kRowBytes + row * Bytes::kScales + lane * 16,
          page + ((kRowBytes << page_shift) + place * Bytes::kScales + lane * 16),
          key <= cached.last && key + kPieceKeys > cached.first);
    }
  }
  template <bool kAllSeen, int... kPasses>
  __device__ __forceinline__ void CopyPieces(uint32_t to, const uint8_t* from, int first,
                                             KeyRange cached,
                                             std::integer_sequence<int, kPasses...>) const {
    const auto copies = [&](int pass) {
      const int key = first + (lane + pass * 32) / kPieces;
      return kAllSeen || (key >= cached.first && key <= cached.last) ? 16 : 0;
    };
    (ptx::CopyAsync16OrZeroAt<0, kPasses * 512>(
         to + PieceAt((lane + kPasses * 32) / kPieces, lane % kPieces), from, copies(kPasses)),
     ...);
  }

  // A row of Bytes::kAll as row `row`.
  __device__ __forceinline__ void PlaceRow(uint8_t* to, int row, const uint8_t* from) const {
    if (lane < kPieces)
      *reinterpret_cast<uint4*>(to + PieceAt(row, lane)) =
          reinterpret_cast<const uint4*>(from)[lane];
    if (lane < Bytes::kScales / 4)
      *reinterpret_cast<uint32_t*>(to + kRoundKeys * kRowBytes + row * Bytes::kScales + lane * 4) =
          *reinterpret_cast<const uint32_t*>(from + kRowBytes + lane * 4);
  }

  // ---- Scales of NVFP4 ----

  // Of this warp's keys.
  __device__ __forceinline__ void ReadKeyScales(Scales& scales, const uint8_t* buffer) const {
    constexpr int kWords = kWarpKeys * kDimAtoms / 4;
    const auto* from =
        reinterpret_cast<const uint32_t*>(buffer + kRoundKeys * kRowBytes) + warp * kWords;
    auto* to = reinterpret_cast<uint2*>(scales.keys) + warp * kWords;
#pragma unroll
    for (int n = 0; n < (kWords + 31) / 32; ++n) {
      const int i = n * 32 + lane;
      if (kWords % 32 != 0 && i >= kWords) break;
      const uint32_t codes = from[i];
      to[i] = {Nvfp4Scales(__byte_perm(codes, 0, 0x1404)),
               Nvfp4Scales(__byte_perm(codes, 0, 0x3424))};
    }
  }
  __device__ __forceinline__ void ReadValueScales(Scales& scales, const uint8_t* buffer) const {
    constexpr int kItems = kWarpKeys / 2 * kDimAtoms / 2;  // two keys, two atoms
    const auto* from = reinterpret_cast<const uint16_t*>(buffer + kRoundKeys * kRowBytes);
    auto* to = reinterpret_cast<uint32_t*>(scales.values);
#pragma unroll
    for (int n = 0; n < (kItems + 31) / 32; ++n) {
      const int i = n * 32 + lane;
      if (kItems % 32 != 0 && i >= kItems) break;
      const int atoms = i % (kDimAtoms / 2);
      const int pair = warp * (kWarpKeys / 2) + i / (kDimAtoms / 2);
      const uint16_t* codes = from + pair * kDimAtoms + atoms;
      const uint32_t both = codes[0] | uint32_t{codes[kDimAtoms / 2]} << 16;
      const int at = pair / 16 * 16 + pair % 4 * 4 + pair / 4 % 4;
      to[atoms * kRoundKeys + at] = Nvfp4Scales(__byte_perm(both, 0, 0x2404));
      to[atoms * kRoundKeys + kRoundKeys / 2 + at] = Nvfp4Scales(__byte_perm(both, 0, 0x3414));
    }
  }

  // ---- Products ----

  // This warp's keys times queries: s[tile] holds keys g and g + 8 of the tile for queries 2q and
  // 2q + 1.
  __device__ __forceinline__ void Score(float (&s)[kKeyTiles][4], const uint8_t* buffer,
                                        const Scales& scales, const uint8_t* queries_buffer) const {
    const uint32_t address = ptx::SharedAddress(buffer + warp * kWarpKeys * kRowBytes);
    const uint32_t q_address =
        ptx::SharedAddress(queries_buffer) + lane % 8 * kQueryPitch + lane / 8 * 16;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[tile][e] = 0.0f;
#pragma unroll
    for (int a = 0; a < kDimAtoms; a += 2) {
      uint32_t queries[4];  // two atoms
      ptx::LoadMatrices(queries, q_address + a * 32);
      if constexpr (kNvfp4) {
        ScoreNvfp4(s, address, scales, queries, a);
      } else if constexpr (kFp8 && kKeyTiles == 2) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t codes[4];  // 32 keys
          ptx::LoadMatrices(codes, address + PieceAt(lane, a + i));
#pragma unroll
          for (int tile = 0; tile < 2; ++tile)
            MultiplyFp8(s[tile], codes[2 * tile], codes[2 * tile + 1], queries + 2 * i);
        }
      } else if constexpr (kFp8) {
        uint32_t codes[4];  // 16 keys, two atoms
        ptx::LoadMatrices(codes, address + PieceAt(lane % 16, a + lane / 16));
#pragma unroll
        for (int i = 0; i < 2; ++i)
          MultiplyFp8(s[0], codes[2 * i], codes[2 * i + 1], queries + 2 * i);
      } else {
#pragma unroll
        for (int tile = 0; tile < kKeyTiles; ++tile)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            uint32_t rows[4];
            ptx::LoadMatrices(rows,
                              address + PieceAt(tile * 16 + lane % 16, (a + i) * 2 + lane / 16));
            ptx::MmaBf16(s[tile], rows, queries[2 * i], queries[2 * i + 1]);
          }
      }
    }
  }

  // low: codes of keys g, high: of g + 8.
  __device__ __forceinline__ static void MultiplyFp8(float (&s)[4], uint32_t low, uint32_t high,
                                                     const uint32_t* query) {
    const uint32_t rows[4] = {E4M3Even(low), E4M3Even(high), E4M3Odd(low), E4M3Odd(high)};
    ptx::MmaBf16(s, rows, query[0], query[1]);
  }

  // Atoms a and a + 1.
  __device__ __forceinline__ void ScoreNvfp4(float (&s)[kKeyTiles][4], uint32_t address,
                                             const Scales& scales, const uint32_t (&queries)[4],
                                             int a) const {
    const uint32_t* of_keys = scales.keys + (warp * kWarpKeys + lane / 4) * (kDimAtoms / 2) + a / 2;
    uint32_t codes[2 * kKeyTiles];
    ptx::LoadMatrices(codes, address + PieceAt(lane % kWarpKeys, a / 2));
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      uint32_t rows[2][4];
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const uint32_t word = HalvesOfAtoms(codes[2 * tile + high]);
        const uint32_t both = of_keys[(tile * 16 + high * 8) * (kDimAtoms / 2)];
        rows[0][high] = fragments::MultiplyBf16(E2M1Pair<0>(word), both, 0);
        rows[0][2 + high] = fragments::MultiplyBf16(E2M1Pair<1>(word), both, 0);
        rows[1][high] = fragments::MultiplyBf16(E2M1Pair<2>(word), both, 1);
        rows[1][2 + high] = fragments::MultiplyBf16(E2M1Pair<3>(word), both, 1);
      }
      ptx::MmaBf16(s[tile], rows[0], queries[0], queries[1]);
      ptx::MmaBf16(s[tile], rows[1], queries[2], queries[3]);
    }
  }

  // Lanes 0 and 1 of a quad have eight codes of an atom each, lanes 2 and 3 of the next. Of both
  // atoms the lane gets four, in the order of nvfp4_block.cuh: the first atom's bytes are 0 and 2.
  __device__ __forceinline__ uint32_t HalvesOfAtoms(uint32_t codes) const {
    const uint32_t other = __shfl_xor_sync(0xffffffff, codes, 2);
    return __byte_perm(codes, other, lane % 4 < 2 ? 0x5140 : 0x3726);
  }

  // Of the values of keys [key, key + 32) slice `slice` of dimensions as fragments, 16 keys each.
  // buffer: its address.
  __device__ __forceinline__ void LoadValues(uint32_t (&rows)[2][4], uint32_t buffer,
                                             const Scales& scales, int key, int slice) const {
    const uint32_t address = buffer + key * kRowBytes;
    if constexpr (kNvfp4) {
      uint32_t codes[4];
      ptx::LoadMatricesTransposed(codes, address + PieceAt(lane, slice / 2));
      const int atom = slice / 2 * 2 + lane / 16;
      const uint4 of_keys = scales.values[(atom * (kRoundKeys / 32) + key / 32) * 4 + lane % 4];
      const uint32_t scale[4] = {of_keys.x, of_keys.y, of_keys.z, of_keys.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = codes[i] >> (slice % 2 * 8);
        rows[i / 2][i % 2 * 2] = MultiplyHalves(E2M1Pair<0>(word), scale[i]);
        rows[i / 2][i % 2 * 2 + 1] = MultiplyHalves(E2M1Pair<1>(word), scale[i]);
      }
    } else if constexpr (kFp8) {
      uint32_t codes[4];
      ptx::LoadMatricesTransposed(codes, address + PieceAt(lane, slice));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        rows[i / 2][i % 2 * 2] = E4M3Even(codes[i]);
        rows[i / 2][i % 2 * 2 + 1] = E4M3Odd(codes[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        ptx::LoadMatricesTransposed(
            rows[i], address + i * 16 * kRowBytes +
                         PieceAt(lane / 16 * 8 + lane % 8, slice * 2 + lane / 8 % 2));
    }
  }
};

}  // namespace nibble::kernels::cuda
