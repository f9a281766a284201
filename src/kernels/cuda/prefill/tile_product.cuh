// The tile of the prefill kernels, for Hopper: y (tokens, rows) = x Wᵀ over all of K, by wgmma with
// the weights as A in registers and the tokens as B in shared memory.
//
// Warpgroups of 128 threads. Producers keep a ring of stages full: one k-tile of tokens (bulk
// copies, multicast to the cluster, whose CTAs share the tokens and differ in rows) and of codes,
// with the slice's scales in its first stage. Consumers own 64 rows and kN tokens each; they decode
// the next k-tile into one set of A fragments while the tensor cores multiply by the other, and
// keep two accumulators, the slice's and the total: the order of weight_tiles.h.
#pragma once

#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/prefill/tokens.h"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/convert.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kWarpgroupRows = 64;

// kRowParts x kTokenParts consumers.
template <TileFormat kTileFormat, int kRowParts, int kTokenParts, int kWarpgroupTokens,
          int kClusterSize>
struct TileShape {
  static constexpr TileFormat kFormat = kTileFormat;
  static constexpr int kN = kWarpgroupTokens;
  static constexpr int kCluster = kClusterSize;
  static constexpr int kParts = kRowParts;
  static constexpr int kConsumers = kRowParts * kTokenParts;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kRows = kRowParts * kWarpgroupRows;
  static constexpr int kRowTiles = kRows / kTileRows;
  static constexpr int kTokens = kTokenParts * kN;
  static constexpr int kGroups = kTokens / kGroupTokens;

  // Rings are of whole slices: the four k-tiles of one always take the same places, so that
  // addresses are constants. Of weights a warp has kWeightSlices, of tokens the CTA kSlices.
  static constexpr int kCodeBytes = CodeBytes(kFormat);
  static constexpr int kScaleBytes = ScaleBytes(kFormat, kSliceColumns);
  static constexpr int kSliceBytes = kSliceTiles * kCodeBytes + kScaleBytes;
  static constexpr int kWeightSlices = kCodeBytes > 512 ? 1 : 2;
  static constexpr int kWeightTiles = kWeightSlices * kSliceTiles;
  static constexpr int kWeightBytes = kConsumers * 4 * kWeightSlices * kSliceBytes;

  static constexpr int kStageBytes = kGroups * kPieceBytes;  // tokens of a k-tile
  static constexpr int kSlices = 2;
  static constexpr int kStages = kSlices * kSliceTiles;

  static constexpr int kOutputBytes = kConsumers * kN * kWarpgroupRows * 2;
  static constexpr int kAllocatedBytes =
      1024 /* alignment */ + kStages * kStageBytes + kWeightBytes + kOutputBytes + 2 * kStages * 8;
  static_assert(kAllocatedBytes <= 227 * 1024);

  // What setmaxnreg may hand out: 64 K registers of an SM.
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;
};

#ifdef NIBBLE_HAVE_WGMMA

// A slice's places in a ring of kSlices.
template <int kSlices>
struct RingPosition {
  int slot = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void Advance() {
    if (++slot == kSlices) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// The CTA's shared memory.
template <typename Shape>
struct TileStorage {
  std::byte* stages;   // of tokens, 1024-byte aligned
  std::byte* weights;  // (consumer warps, kWeightSlices, kSliceBytes)
  std::byte* outputs;
  uint64_t* full;
  uint64_t* free;

  __device__ __forceinline__ explicit TileStorage(std::byte* memory) {
    stages = memory + (1024 - ptx::SharedAddress(memory) % 1024) % 1024;
    weights = stages + Shape::kStages * Shape::kStageBytes;
    outputs = weights + Shape::kWeightBytes;
    full = reinterpret_cast<uint64_t*>(outputs + Shape::kOutputBytes);
    free = full + Shape::kStages;
  }

  // By all threads of the cluster.
  __device__ __forceinline__ void Init() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Shape::kStages; ++i) {
        ptx::BarrierInit(full + i, 1);
        ptx::BarrierInit(free + i, Shape::kConsumers * 4 * Shape::kCluster);
      }
      ptx::FenceBarrierInit();
    }
    if constexpr (Shape::kCluster > 1) {
      ptx::ClusterSync();
    } else {
      __syncthreads();
    }
  }
};

// One thread that fills the ring of tokens.
template <typename Shape>
struct TokenProducer {
  const TileStorage<Shape>& storage;
  int rank;  // of the CTA in its cluster
  RingPosition<Shape::kSlices> at;

  // `groups` (at most a tile's) from `group` on, slice by slice.
  __device__ __forceinline__ void Run(const PreparedTokens& x, int group, int groups, int k_tiles) {
    constexpr int kShare = Shape::kGroups / Shape::kCluster;
    const int share = min(groups - rank * kShare, kShare);
    const int64_t tile_bytes = int64_t{x.groups} * kPieceBytes;
    const std::byte* const first = x.data + int64_t{group + rank * kShare} * kPieceBytes;
    const std::byte* from = first;
    int x_tile = 0;
    for (int tile = 0; tile < k_tiles; tile += kSliceTiles) {
      for (int u = 0; u < kSliceTiles; ++u) {
        const int stage = at.slot * kSliceTiles + u;
        uint64_t* full = storage.full + stage;
        ptx::BarrierWait(storage.free + stage, at.phase ^ 1);
        if (tile + u >= k_tiles) {  // of a short slice
          ptx::BarrierArrive(full);
          continue;
        }
        ptx::BarrierExpect(full, groups * kPieceBytes);
        std::byte* to = storage.stages + stage * Shape::kStageBytes + rank * kShare * kPieceBytes;
        if constexpr (Shape::kCluster == 1) {
          ptx::BulkCopy(to, from, share * kPieceBytes, full);
        } else {
          constexpr uint16_t kAll = (1 << Shape::kCluster) - 1;
          if (share > 0) ptx::BulkCopyToCluster(to, from, share * kPieceBytes, full, kAll);
        }
        from += tile_bytes;
        if (++x_tile == x.tiles) {
          x_tile = 0;
          from = first;
        }
      }
      at.Advance();
    }
  }
};

// A warp's own weights: slices of a row tile, then of the next work's. Every k-tile that is read is
// replaced by the one kWeightTiles later.
template <typename Shape, typename RowTiles>
struct WeightRing {
  const RowTiles& row_tiles;  // (i): where the warp's row tile of its i-th work starts, or null
  const int k_tiles;
  std::byte* const ring;
  // The slice to fill, from the lane's bytes on; null: none left.
  const std::byte* from;
  int left;  // k-tiles of the row tile from it on
  int work = 0;
  int slot = 0;  // to fill and to read

  __device__ __forceinline__ WeightRing(const TileStorage<Shape>& storage, const RowTiles& tiles,
                                        int count)
      : row_tiles(tiles),
        k_tiles(count),
        ring(storage.weights + threadIdx.x / 32 * (Shape::kWeightSlices * Shape::kSliceBytes)) {
    Enter();
    for (int i = 0; i < Shape::kWeightSlices; ++i) {
#pragma unroll
      for (int u = 0; u < kSliceTiles; ++u) Fill(u);
      NextSlice();
    }
  }

  __device__ __forceinline__ void Enter() {
    from = row_tiles(work);
    left = from == nullptr ? 0 : k_tiles;
    from += threadIdx.x % 32 * 16;
  }
  __device__ __forceinline__ std::byte* slice() const { return ring + slot * Shape::kSliceBytes; }
  __device__ __forceinline__ const std::byte* codes(int u) const {
    return slice() + u * Shape::kCodeBytes;
  }
  __device__ __forceinline__ const std::byte* scales() const {
    return slice() + kSliceTiles * Shape::kCodeBytes;
  }

  // Before k-tile u of the slot is read.
  __device__ __forceinline__ void Wait() const {
    ptx::WaitForCopies<Shape::kWeightTiles - 1>();
    __syncwarp();
  }
  // After that.
  __device__ __forceinline__ void Fill(int u) const {
    std::byte* to = slice() + threadIdx.x % 32 * 16;
    if (u < left) {
#pragma unroll
      for (int v = 0; v < Shape::kCodeBytes / 512; ++v) {
        const int at = u * Shape::kCodeBytes + v * 512;
        ptx::CopyAsync16(to + at, from + at);
      }
    }
    if (Shape::kScaleBytes > 0 && u == 0 && left > 0 &&
        threadIdx.x % 32 * 16 < Shape::kScaleBytes) {
      ptx::CopyAsync16(to + kSliceTiles * Shape::kCodeBytes,
                       from + min(kSliceTiles, left) * Shape::kCodeBytes);
    }
    ptx::CommitCopies();
  }
  // After the fourth.
  __device__ __forceinline__ void NextSlice() {
    if (Shape::kWeightSlices > 1) slot ^= 1;
    from += Shape::kSliceBytes;
    left -= kSliceTiles;
    if (left <= 0 && work >= 0) {
      ++work;
      Enter();
      if (left == 0) work = -1;
    }
  }
};

// A consumer warpgroup.
template <typename Shape, typename RowTiles>
struct TileConsumer {
  static constexpr int kN = Shape::kN;
  using Scales = LaneScales<Shape::kFormat>;

  const TileStorage<Shape>& storage;
  WeightRing<Shape, RowTiles>& weights;
  const uint64_t tokens;  // descriptor of the part's tokens in stage 0
  const uint32_t free;    // barriers of the CTA that this lane tells
  RingPosition<Shape::kSlices> at;

  __device__ __forceinline__ TileConsumer(const TileStorage<Shape>& s,
                                          WeightRing<Shape, RowTiles>& w, int token_part)
      : storage(s),
        weights(w),
        tokens(ptx::WgmmaDescriptor(s.stages + token_part * (kN * kTileColumns * 2))),
        free(Shape::kCluster == 1 ? ptx::SharedAddress(s.free)
                                  : ptx::AddressAt(s.free, threadIdx.x % Shape::kCluster)) {}

  __device__ __forceinline__ void Release(int stage) const {
    if (threadIdx.x % 32 < Shape::kCluster) ptx::BarrierArriveAt(free + stage * 8);
  }

  // The A fragments of k-tile u of the slice that `weights` is at.
  __device__ __forceinline__ void Decode(const Scales& scales, int u, uint32_t (&a)[4][4]) {
    constexpr int kVectors = Shape::kCodeBytes / 512;
    const auto* lane = reinterpret_cast<const uint4*>(weights.codes(u)) + threadIdx.x % 32;
    uint4 codes[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) codes[v] = lane[32 * v];
    scales.Decode(codes, u, a);
    weights.Fill(u);
    if (u == kSliceTiles - 1) weights.NextSlice();
  }
  __device__ __forceinline__ Scales NextScales() const {
    weights.Wait();
    return Scales(weights.scales(), kSliceColumns, threadIdx.x % 32);
  }

  // One slice, all of its four k-tiles there or only `tiles`. a[0] holds its first k-tile's
  // fragments, and the next slice's in the end, if there is one.
  template <bool kWhole>
  __device__ __forceinline__ void AddSlice(int tiles, bool next, Scales& scales,
                                           uint32_t (&a)[2][4][4], float (&slice)[kN / 2],
                                           float (&total)[kN / 2]) {
    const int first = at.slot * kSliceTiles;
    uint64_t* const full = storage.full + first;
    const uint64_t b = tokens + at.slot * (kSliceTiles * Shape::kStageBytes / 16);
    bool ready = ptx::BarrierTest(full, at.phase);
#pragma unroll
    for (int u = 0; u < kSliceTiles; ++u) {
      if (!ready) ptx::BarrierWait(full + u, at.phase);
      if (!kWhole &&
          u >= tiles) {  // an empty stage; places of weights that are filled all the same
        if (u + 1 < kSliceTiles) ready = ptx::BarrierTest(full + u + 1, at.phase);
        Release(first + u);
        weights.Wait();
        weights.Fill(u);
        if (u == kSliceTiles - 1) weights.NextSlice();
        continue;
      }
      ptx::WgmmaFence();
#pragma unroll
      for (int j = 0; j < 4; ++j)
        ptx::WgmmaBf16<kN>(slice, a[u % 2][j], b + u * (Shape::kStageBytes / 16) + 2 * j,
                           u > 0 || j > 0);
      ptx::WgmmaCommit();
      if (u + 1 < kSliceTiles) ready = ptx::BarrierTest(full + u + 1, at.phase);
      if (u > 0) {
        ptx::WgmmaWait<1>();
        Release(first + u - 1);
      }
      if (u + 1 < kSliceTiles && (kWhole || u + 1 < tiles)) {
        weights.Wait();
        Decode(scales, u + 1, a[(u + 1) % 2]);
      } else if (kWhole && next) {
        scales = NextScales();
        Decode(scales, 0, a[0]);
      }
      if (u == kSliceTiles - 1 || (!kWhole && u + 1 == tiles)) {
        ptx::WgmmaWait<0>();
        ptx::WgmmaPin(slice);
        Release(first + u);
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) total[i] += slice[i];
      }
    }
    at.Advance();
  }

  // total: of row g, tokens 8 i + 2 q, + 1 in elements 4 i, 4 i + 1; of row g + 8 in the next two.
  __device__ __forceinline__ void Run(int k_tiles, float (&total)[kN / 2]) {
    uint32_t a[2][4][4];
    float slice[kN / 2];
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) total[i] = slice[i] = 0.0f;

    Scales scales = NextScales();
    Decode(scales, 0, a[0]);
    int left = k_tiles;
    for (; left >= kSliceTiles; left -= kSliceTiles)
      AddSlice<true>(kSliceTiles, left > kSliceTiles, scales, a, slice, total);
    if (left > 0) AddSlice<false>(left, false, scales, a, slice, total);
  }
};

#endif  // NIBBLE_HAVE_WGMMA

}  // namespace nibble::kernels::cuda
