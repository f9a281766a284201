// The decode step's kernel of multi-head latent attention on Hopper: all query heads share one key
// of 576 numbers, which is the value, too.
//
// A CTA takes a tile of 64 query rows and some of the keys. Warpgroup 0 copies leaves into a ring,
// two warpgroups do the rest by wgmma, two neighbouring leaves of a block at a time: each scores
// one against all 64 rows, hands its weights to the other, and sums half of the dimensions over
// both leaves. What CTAs find of their units, blocks or groups of keys, they leave in memory for
// merge_partials.cuh; where units are groups, a CTA merges its blocks there.
//
// The order of sums is attention_order.cuh's. Shared memory holds a leaf as prefill_shared.cuh
// does.
#pragma once

#include <utility>

#include "kernels/cuda/attention/attention_problem.cuh"
#include "kernels/cuda/attention/leaf_softmax.cuh"
#include "kernels/cuda/attention/nvfp4_block.cuh"
#include "kernels/cuda/attention/prefill_shared.cuh"
#include "kernels/cuda/ptx/copy_parts.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/pdl.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kLatentRows = 64;
inline constexpr int kLatentThreads = 384;

struct LatentShared {
  static constexpr int kSlots = 2;
  static constexpr int kLeafBytes = kLeafKeys * kLatentDim * 2;
  static constexpr int kPieceBytes = kLeafKeys * 128;  // 64 dimensions of a leaf

  uint8_t ring[kSlots][kLeafBytes];
  uint8_t queries[kLeafBytes];  // as a leaf
  // From a warpgroup to the same threads of the other.
  uint4 weights[4][128];
  float2 sums[128];
  float maxima[2][kLatentRows];
  uint64_t filled[kSlots];
  uint64_t freed[kSlots];
};

#ifdef NIBBLE_HAVE_WGMMA

// Which keys a CTA takes: every `splits`-th unit of the tile's, a block or a group.
struct LatentUnits {
  KeyRange keys;  // of the tile
  int unit_blocks;
  int splits;
  int split;

  __device__ __forceinline__ int FirstBlock() const { return keys.first / kBlockKeys; }
  __device__ __forceinline__ int LastBlock() const { return keys.last / kBlockKeys; }
  __device__ __forceinline__ int FirstUnit() const { return FirstBlock() / unit_blocks; }
};

// A CTA's leaves, ascending.
struct LeafWalk {
  const LatentUnits& units;
  int block;
  int leaf;
  int last_leaf;  // of the block

  __device__ __forceinline__ explicit LeafWalk(const LatentUnits& u) : units(u) {
    block = max((u.FirstUnit() + u.split) * u.unit_blocks, u.FirstBlock());
    EnterBlock();
  }
  __device__ __forceinline__ bool done() const { return block > units.LastBlock(); }
  __device__ __forceinline__ void EnterBlock() {
    constexpr int kLeaves = kBlockKeys / kLeafKeys;
    leaf = max(block * kLeaves, units.keys.first / kLeafKeys);
    last_leaf = min(block * kLeaves + kLeaves - 1, units.keys.last / kLeafKeys);
  }
  __device__ __forceinline__ void Next() {
    if (++leaf <= last_leaf) return;
    ++block;
    if (block % units.unit_blocks == 0) block += (units.splits - 1) * units.unit_blocks;
    EnterBlock();
  }
};

// Warp w copies the leaf's keys 16 w .. 16 w + 15, which lie in one page, one after another. Of
// BF16 eight lanes take 128 bytes of a row, so that addresses follow from each other by constants.
template <bool kFp8>
struct LatentProducer {
  static constexpr int kPieces = kLatentDim * (kFp8 ? 1 : 2) / 16;  // of 16 bytes, of a key
  static constexpr int kPasses = 16 * kPieces / 32;
  static constexpr int kAtOnce = 9;  // pieces of FP8 on their way to a thread
  static_assert(kPasses % kAtOnce == 0);

  const AttentionProblem& p;
  LatentShared& shared;
  const AttentionTile& tile;
  KeyRange keys;

  __device__ __forceinline__ static int FirstRow() {
    return static_cast<int>(threadIdx.x) / 32 * 16;
  }
  __device__ __forceinline__ static int Lane() { return static_cast<int>(threadIdx.x) % 32; }
  // Of the warp's pieces the lane's in a pass.
  __device__ __forceinline__ static int Piece(int pass) { return Lane() + pass * 32; }

  __device__ __forceinline__ bool IsSeen(int key) const {
    return key >= keys.first && key <= keys.last;
  }

  __device__ __forceinline__ void Run(const LatentUnits& units) const {
    RingCursor<LatentShared::kSlots> to;
    bool has_waited = false;
    for (LeafWalk walk(units); !walk.done(); walk.Next()) {
      // The step's own keys are the predecessor's work.
      if (!has_waited && (walk.leaf + 1) * kLeafKeys > tile.kv_len - tile.tokens) {
        ptx::WaitForPredecessor();
        has_waited = true;
      }
      const int first_key = walk.leaf * kLeafKeys + FirstRow();
      const uint8_t* from = PiecesOf(first_key);
      if constexpr (kFp8) {
        ptx::BarrierWait(&shared.freed[to.slot], to.parity ^ 1);
#pragma unroll 1
        for (int pass = 0; pass < kPasses; pass += kAtOnce) {
          uint4 codes[kAtOnce];
          LoadCodes(codes, from, first_key, pass);
          StoreCodes(shared.ring[to.slot], codes, pass);
        }
        ptx::BarrierArrive(&shared.filled[to.slot]);
      } else {
        ptx::BarrierWait(&shared.freed[to.slot], to.parity ^ 1);
        Copy(shared.ring[to.slot], from, first_key);
        ptx::BarrierArriveAfterCopies(&shared.filled[to.slot]);
      }
      to.Advance();
    }
    if (!has_waited) ptx::WaitForPredecessor();
    ptx::WaitForCopies<0>();
  }

  // The warp's keys; of FP8 the lane's first piece of them.
  __device__ __forceinline__ const uint8_t* PiecesOf(int first_key) const {
    const int key = min(max(first_key, keys.first), keys.last);
    const int32_t page = p.page_table[tile.sequence * p.max_pages + (key >> p.page_shift)];
    const int64_t row = (int64_t{page} << p.page_shift) + (first_key & ((1 << p.page_shift) - 1));
    return p.k + row * (kPieces * 16) + (kFp8 ? Lane() * 16 : 0);
  }

  __device__ __forceinline__ void Copy(uint8_t* to, const uint8_t* from, int first_key) const {
#pragma unroll
    for (int rows = 0; rows < 4; ++rows) {
      const int row = rows * 4 + Lane() / 8;
      const uint32_t chunk = ptx::SharedAddress(LeafChunk(to, FirstRow() + row, Lane() % 8));
      CopyPieces(chunk, from + row * (kLatentDim * 2) + Lane() % 8 * 16,
                 IsSeen(first_key + row) ? 16 : 0,
                 std::make_integer_sequence<int, kLatentDim / 64>());
    }
  }
  template <int... kPiecesOf64>
  __device__ __forceinline__ static void CopyPieces(uint32_t to, const uint8_t* from, int bytes,
                                                    std::integer_sequence<int, kPiecesOf64...>) {
    (ptx::CopyAsync16OrZeroAt<kPiecesOf64 * LatentShared::kPieceBytes, kPiecesOf64 * 128>(to, from,
                                                                                          bytes),
     ...);
  }

  __device__ __forceinline__ void LoadCodes(uint4 (&codes)[kAtOnce], const uint8_t* from,
                                            int first_key, int first_pass) const {
    from += first_pass * 512;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool seen = IsSeen(first_key + Piece(first_pass + i) / kPieces);
      codes[i] = seen ? *reinterpret_cast<const uint4*>(from + i * 512) : uint4{};
    }
  }

  // A piece is an atom of 16 dimensions, stored in the order of E4M3Slot.
  __device__ __forceinline__ static void StoreCodes(uint8_t* to, const uint4 (&codes)[kAtOnce],
                                                    int first_pass) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = Piece(first_pass + i) / kPieces;
      const int atom = Piece(first_pass + i) - row * kPieces;
      const uint4 c = codes[i];
      *reinterpret_cast<uint4*>(LeafChunk(to, FirstRow() + row, atom * 2)) = {
          E4M3Even(c.x), E4M3Even(c.y), E4M3Even(c.z), E4M3Even(c.w)};
      *reinterpret_cast<uint4*>(LeafChunk(to, FirstRow() + row, atom * 2 + 1)) = {
          E4M3Odd(c.x), E4M3Odd(c.y), E4M3Odd(c.z), E4M3Odd(c.w)};
    }
  }
};

// Warpgroup 0 or 1 of two: dimensions [256 w, 256 w + 256) and [512 + 32 w, 512 + 32 w + 32).
template <bool kFp8>
struct LatentConsumer {
  static constexpr int kQueriesBarrier = 1;  // and other times when all meet
  static constexpr int kFirstBarrier = 2;    // the first leaf's weights are there
  static constexpr int kSecondBarrier = 3;

  struct Sums {
    float o[2][64];    // 128 dimensions each
    float o_tail[16];  // 32
  };

  const AttentionProblem& p;
  LatentShared& shared;
  const AttentionTile& tile;
  int warpgroup;
  LeafSoftmax<kFp8> softmax;

  __device__ __forceinline__ LatentConsumer(const AttentionProblem& problem, LatentShared& s,
                                            const AttentionTile& t, int group)
      : p(problem),
        shared(s),
        tile(t),
        warpgroup(group),
        softmax(problem, t, t.first_row + static_cast<int>(threadIdx.x) % 128 / 32 * 16) {}

  // Rows of all heads of a token follow each other, and those of its successor.
  __device__ __forceinline__ void LoadQueries() const {
    constexpr int kAtoms = kLatentDim / 16;
    const int rows = min(kLatentRows, tile.tokens * p.heads_per_kv - tile.first_row);
    const uint16_t* first =
        p.q + (int64_t{tile.first_token} * p.heads_per_kv + tile.first_row) * kLatentDim;
#pragma unroll 3
    for (int n = 0; n < kLatentRows * kAtoms / 256; ++n) {
      const int index = static_cast<int>(threadIdx.x) - 128 + n * 256;
      const int row = index / kAtoms;
      const int atom = index % kAtoms;
      uint4 x[2] = {};
      if (row < rows) {
        const auto* from = reinterpret_cast<const uint4*>(first + row * kLatentDim + atom * 16);
        x[0] = from[0];
        x[1] = from[1];
      }
      if constexpr (kFp8) {  // even dimensions, then odd ones
        const uint32_t words[8] = {x[0].x, x[0].y, x[0].z, x[0].w, x[1].x, x[1].y, x[1].z, x[1].w};
        uint32_t even[4], odd[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t a = words[2 * i], b = words[2 * i + 1];
          even[i] = QueryForFp8(a & 0xffff) | uint32_t{QueryForFp8(b & 0xffff)} << 16;
          odd[i] = QueryForFp8(a >> 16) | uint32_t{QueryForFp8(b >> 16)} << 16;
        }
        x[0] = {even[0], even[1], even[2], even[3]};
        x[1] = {odd[0], odd[1], odd[2], odd[3]};
      }
      *reinterpret_cast<uint4*>(LeafChunk(shared.queries, row, atom * 2)) = x[0];
      *reinterpret_cast<uint4*>(LeafChunk(shared.queries, row, atom * 2 + 1)) = x[1];
    }
    ptx::FenceAsyncProxy();
    ptx::SyncThreads(kQueriesBarrier, 256);
  }

  __device__ __forceinline__ void Score(float (&s)[32], int slot) const {
    uint64_t keys = ptx::WgmmaDescriptor(shared.ring[slot]);
    uint64_t queries = ptx::WgmmaDescriptor(shared.queries);
    asm volatile("" : "+l"(queries), "+l"(keys));  // else 36 of them are kept from leaf to leaf
    ptx::WgmmaPin(s);
    ptx::WgmmaFence();
#pragma unroll
    for (int a = 0; a < kLatentDim / 16; ++a) {
      const int at = a / 4 * LatentShared::kPieceBytes + a % 4 * 32;
      ptx::WgmmaBf16SharedA(s, ptx::WgmmaDescriptorAt(queries, at),
                            ptx::WgmmaDescriptorAt(keys, at), a > 0);
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    ptx::WgmmaPin(s);
  }

  __device__ __forceinline__ static void Pin(Sums& sums) {
    ptx::WgmmaPin(sums.o[0]);
    ptx::WgmmaPin(sums.o[1]);
    ptx::WgmmaPin(sums.o_tail);
  }

  __device__ __forceinline__ void AddValues(Sums& sums, uint32_t (&weights)[4][4], int slot,
                                            bool accumulate) const {
    const auto at = [&](int piece, int bytes) {
      return ptx::WgmmaDescriptorTransposed(
          shared.ring[slot] + piece * LatentShared::kPieceBytes + bytes, LatentShared::kPieceBytes);
    };
    const uint64_t values[2] = {at(warpgroup * 4, 0), at(warpgroup * 4 + 2, 0)};
    const uint64_t tail = at(8, warpgroup * 64);
    Pin(sums);
    ptx::WgmmaPin(weights);
    ptx::WgmmaFence();
#pragma unroll
    for (int a = 0; a < 4; ++a) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        ptx::WgmmaBf16Transposed<128>(sums.o[i], weights[a], values[i] + a * 128,
                                      accumulate || a > 0);
      ptx::WgmmaBf16Transposed<32>(sums.o_tail, weights[a], tail + a * 128, accumulate || a > 0);
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    Pin(sums);
    ptx::WgmmaPin(weights);
  }

  // Calls use(o[4] of row r's slice: both halves of the atom, first dimension of the slice).
  template <typename Use>
  __device__ __forceinline__ void ForSlices(Sums& sums, const Use& use) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int a = 0; a < 8; ++a) use(sums.o[i] + a * 8, warpgroup * 256 + i * 128 + a * 16);
#pragma unroll
    for (int a = 0; a < 2; ++a) use(sums.o_tail + a * 8, 512 + warpgroup * 32 + a * 16);
  }

  // ---- Weights ----

  // m of the rows and the factors of what was summed before the first and the second leaf.
  struct Maxima {
    float m[2];
    float rescale[2][2];
  };

  // All maxima of both leaves; the weights of this warpgroup's refer to `own`, the maxima so far.
  __device__ __forceinline__ Maxima ShareMaxima(const float (&largest)[2], const float (&m)[2],
                                                bool has_second, float (&own)[2]) const {
    const int first_row = softmax.row[0] - tile.first_row;
    if (threadIdx.x % 4 == 0) {
      shared.maxima[warpgroup][first_row] = largest[0];
      shared.maxima[warpgroup][first_row + 8] = largest[1];
    }
    ptx::SyncThreads(kQueriesBarrier, 256);
    Maxima maxima = {{m[0], m[1]}, {}};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float other = shared.maxima[warpgroup ^ 1][first_row + 8 * r];
      maxima.rescale[0][r] =
          LeafSoftmax<kFp8>::Grow(maxima.m[r], warpgroup == 0 ? largest[r] : other);
      own[r] = maxima.m[r];
      maxima.rescale[1][r] = LeafSoftmax<kFp8>::Grow(maxima.m[r], !has_second      ? MinusInfinity()
                                                                  : warpgroup == 0 ? other
                                                                                   : largest[r]);
      if (warpgroup == 1) own[r] = maxima.m[r];
    }
    return maxima;
  }

  __device__ __forceinline__ static int Thread() { return static_cast<int>(threadIdx.x) % 128; }
  __device__ __forceinline__ void PutWeights(const uint32_t (&weights)[4][4]) const {
#pragma unroll
    for (int a = 0; a < 4; ++a)
      shared.weights[a][Thread()] = {weights[a][0], weights[a][1], weights[a][2], weights[a][3]};
  }
  __device__ __forceinline__ void GetWeights(uint32_t (&weights)[4][4]) const {
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      const uint4 x = shared.weights[a][Thread()];
      weights[a][0] = x.x, weights[a][1] = x.y, weights[a][2] = x.z, weights[a][3] = x.w;
    }
  }

  __device__ __forceinline__ static void Swap(uint32_t (&a)[4][4], uint32_t (&b)[4][4]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t x = a[i / 4][i % 4];
      a[i / 4][i % 4] = b[i / 4][i % 4];
      b[i / 4][i % 4] = x;
    }
  }

  // ---- The run over all leaves ----

  __device__ __forceinline__ static void Rescale(Sums& sums, const float (&factors)[2]) {
    if (!__any_sync(0xffffffff, factors[0] != 1.0f || factors[1] != 1.0f)) return;
    ForQuads(sums, [&](float* o, int) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[i] *= factors[i / 2];
    });
  }

  __device__ __forceinline__ void WaitForLeaf(const RingCursor<LatentShared::kSlots>& at) const {
    ptx::BarrierWait(&shared.filled[at.slot], at.parity);
    ptx::FenceAsyncProxy();
  }
  __device__ __forceinline__ void Free(int slot) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::BarrierArrive(&shared.freed[slot]);
  }

  __device__ __forceinline__ void Run(const LatentUnits& units) const {
    LeafWalk walk(units);
    ptx::WaitForPredecessor();
    if (walk.done()) return;
    LoadQueries();
    RingCursor<LatentShared::kSlots> first;
    Sums sums;
    float m[2] = {MinusInfinity(), MinusInfinity()};
    float l[2] = {};  // in warpgroup 0
    float group_m[2], group_l[2];
    bool begins = true;  // a block
    while (!walk.done()) {
      const bool has_second = walk.leaf < walk.last_leaf;
      RingCursor<LatentShared::kSlots> second = first;
      second.Advance();
      uint32_t weights[4][4], others[4][4];
      float largest[2] = {MinusInfinity(), MinusInfinity()}, own_m[2], own_sums[2];
      float s[32];
      // Without a second leaf warpgroup 1 scores the first, too, for nothing.
      const bool is_second = warpgroup == 1 && has_second;
      RingCursor<LatentShared::kSlots> own = first;
      if (is_second) own = second;
      WaitForLeaf(own);
      Score(s, own.slot);
      softmax.FindLargest(s, largest, walk.leaf + (is_second ? 1 : 0));
      const Maxima maxima = ShareMaxima(largest, m, has_second, own_m);
      softmax.Weigh(s, weights, own_m, own_sums);
      if (warpgroup == 0) {
        PutWeights(weights);
        ptx::ArriveThreads(kFirstBarrier, 256);
#pragma unroll
        for (int r = 0; r < 2; ++r) l[r] = __fmaf_rn(l[r], maxima.rescale[0][r], own_sums[r]);
      } else {
        ptx::SyncThreads(kFirstBarrier, 256);
        GetWeights(others);
        PutWeights(weights);
        shared.sums[Thread()] = {own_sums[0], own_sums[1]};
        ptx::ArriveThreads(kSecondBarrier, 256);
        Swap(weights, others);
        WaitForLeaf(first);
      }
      if (!begins) Rescale(sums, maxima.rescale[0]);
      AddValues(sums, weights, first.slot, !begins);
      Free(first.slot);
      if (warpgroup == 0) ptx::SyncThreads(kSecondBarrier, 256);
      if (has_second) {
        if (warpgroup == 0) {
          GetWeights(others);
          const float2 x = shared.sums[Thread()];
          l[0] = __fmaf_rn(l[0], maxima.rescale[1][0], x.x);
          l[1] = __fmaf_rn(l[1], maxima.rescale[1][1], x.y);
          WaitForLeaf(second);
        }
        Rescale(sums, maxima.rescale[1]);
        AddValues(sums, others, second.slot, true);
        Free(second.slot);
        first.Advance();
      }
      first.Advance();
#pragma unroll
      for (int r = 0; r < 2; ++r) m[r] = maxima.m[r];

      const int block = walk.block;
      walk.Next();
      if (has_second) walk.Next();
      begins = walk.block != block;
      if (begins) {
#pragma unroll
        for (int r = 0; r < 2; ++r) l[r] = QuadSum(l[r]);
        float* entry = PartialEntry(p, tile.slot, 0, block / units.unit_blocks - units.FirstUnit());
        if (units.unit_blocks == 1) {
          Write(sums, m, l, entry);
        } else {
          const bool group_ends =
              walk.done() || walk.block / units.unit_blocks != block / units.unit_blocks;
          MergeOnto(entry, block % kBlocksPerGroup == 0 || block == units.FirstBlock(), group_ends,
                    group_m, group_l, sums, m, l);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          m[r] = MinusInfinity();
          l[r] = 0.0f;
        }
      }
    }
  }

  // Calls use(four sums, of rows g, g, g + 8, g + 8; 0 .. 35).
  template <typename Use>
  __device__ __forceinline__ static void ForQuads(Sums& sums, const Use& use) {
#pragma unroll
    for (int i = 0; i < 32; ++i) use(sums.o[i / 16] + i % 16 * 4, i);
#pragma unroll
    for (int i = 0; i < 4; ++i) use(sums.o_tail + i * 4, 32 + i);
  }

  // A group's sums so far lie in its entry, each thread's apart from others', until its last block
  // is merged.
  __device__ __forceinline__ void MergeOnto(float* entry, bool begins, bool ends,
                                            float (&group_m)[2], float (&group_l)[2], Sums& sums,
                                            const float (&m)[2], const float (&l)[2]) const {
    MergeFactors factors[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (begins) {
        group_m[r] = MinusInfinity();
        group_l[r] = 0.0f;
      }
      factors[r] = Merge(group_m[r], m[r]);
      group_l[r] = Merged(group_l[r], l[r], factors[r]);
    }
    float4* own = reinterpret_cast<float4*>(entry) + static_cast<int>(threadIdx.x) - 128;
    constexpr int kAtOnce = 9;
    float4 old[kAtOnce];
    ForQuads(sums, [&](float* o, int i) {
      if (i % kAtOnce == 0) {
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) old[n] = begins ? float4{} : own[(i + n) * 256];
      }
      const float4 x = old[i % kAtOnce];
      o[0] = Merged(x.x, o[0], factors[0]);
      o[1] = Merged(x.y, o[1], factors[0]);
      o[2] = Merged(x.z, o[2], factors[1]);
      o[3] = Merged(x.w, o[3], factors[1]);
      if (!ends) own[i * 256] = {o[0], o[1], o[2], o[3]};
    });
    if (!ends) return;
    ptx::SyncThreads(kQueriesBarrier, 256);  // all have read theirs
    Write(sums, group_m, group_l, entry);
  }

  __device__ __forceinline__ float* RowOf(float* entry, int r) const {
    return entry + (softmax.row[r] - tile.first_row) * kLatentDim;
  }

  // Of a slice of 16 dimensions this thread's four of a row: o[0], o[1] of one half, o[4], o[5] of
  // the other.
  __device__ __forceinline__ static void StoreSlice(const float* o, float* slice) {
    const int q = static_cast<int>(threadIdx.x) % 4;
    if constexpr (kFp8) {
      *reinterpret_cast<float4*>(slice + 4 * q) = {o[0], o[4], o[1], o[5]};
    } else {
      *reinterpret_cast<float2*>(slice + 2 * q) = {o[0], o[1]};
      *reinterpret_cast<float2*>(slice + 2 * q + 8) = {o[4], o[5]};
    }
  }

  __device__ __forceinline__ void Write(Sums& sums, const float (&m)[2], const float (&l)[2],
                                        float* entry) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!softmax.HasRow(r)) continue;
      ForSlices(sums, [&](float* o, int d) { StoreSlice(o + 2 * r, RowOf(entry, r) + d); });
      if (warpgroup != 0 || threadIdx.x % 4 != 0) continue;
      float* ml = entry + kLatentRows * kLatentDim + softmax.row[r] - tile.first_row;
      ml[0] = m[r];
      ml[kLatentRows] = l[r];
    }
  }
};

#endif  // NIBBLE_HAVE_WGMMA

template <bool kFp8>
__global__ void __launch_bounds__(kLatentThreads, 1)
    LatentAttentionKernel(const __grid_constant__ AttentionProblem p) {
#ifdef NIBBLE_HAVE_WGMMA
  // Two parts consumers and one part producers share 3 * 168, what threads start with.
  constexpr int kProducerRegisters = 40;
  constexpr int kConsumerRegisters = 232;
  static_assert(2 * kConsumerRegisters + kProducerRegisters == 3 * 168);
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = ptx::SharedAddress(raw) % 1024;
  LatentShared& shared = *reinterpret_cast<LatentShared*>(raw + (1024 - misaligned) % 1024);
  const int slot = static_cast<int>(blockIdx.x) / p.splits;
  const AttentionTile tile = FindTile(p, kLatentRows, slot);
  if (threadIdx.x == 0) {
    for (int i = 0; i < LatentShared::kSlots; ++i) {
      ptx::BarrierInit(&shared.filled[i], 128);
      ptx::BarrierInit(&shared.freed[i], 8);
    }
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  ptx::LaunchSuccessor();
  if (tile.sequence < 0) return ptx::WaitForPredecessor();
  const KeyRange keys = KeysOfTile(p, tile, kLatentRows);
  const LatentUnits units = {keys, PlanOf(p, keys).unit_keys / kBlockKeys, p.splits,
                             static_cast<int>(blockIdx.x) - slot * p.splits};
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  if (warpgroup == 0) {
    ptx::GiveRegisters<kProducerRegisters>();
    const LatentProducer<kFp8> producer = {p, shared, tile, keys};
    producer.Run(units);
  } else {
    ptx::TakeRegisters<kConsumerRegisters>();
    LatentConsumer<kFp8> consumer(p, shared, tile, warpgroup - 1);
    consumer.Run(units);
  }
#endif
}

}  // namespace nibble::kernels::cuda
