// The kernel of turns.h.
//
// Rows go in groups of 64, four row tiles, which are dealt out to the CTAs. A unit is a group's
// slice of 256 columns. The units of a CTA, group by group and slice by slice, are its warpgroups'
// in turn. A warpgroup multiplies its unit from zero by wgmma, its warps decoding a row tile each
// into A fragments, waits for the running total of the slices before, adds its own and leaves the
// total in shared memory to the warpgroup of the next slice. So several slices are under way at a
// time, and still they are added one after the other. The last one's warpgroup stores y.
//
// Every warp copies its codes and scales itself (cp.async, two slices ahead), from before the wait
// for the predecessor on. Every warpgroup has a slice's tokens in a ring of four k-tiles, which one
// more warp keeps full.
//
// Clusters that share a group among CTAs were slower: a total takes a microsecond to a peer.
#pragma once

#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/prefill/tile_product.cuh"
#include "kernels/cuda/prefill/turns.h"
#include "kernels/cuda/ptx/mbarrier.cuh"

namespace nibble::kernels::cuda {

// kN tokens, kW warpgroups.
template <TileFormat kTileFormat, int kTokens, int kWarpgroups>
struct TurnShape {
  static constexpr TileFormat kFormat = kTileFormat;
  static constexpr int kN = kTokens;
  static constexpr int kW = kWarpgroups;
  static constexpr int kThreads = kW * kWarpgroupThreads + 32;

  static constexpr int kCodeBytes = CodeBytes(kFormat);
  static constexpr int kScaleBytes = ScaleBytes(kFormat, kSliceColumns);
  static constexpr int kSliceBytes = kSliceTiles * kCodeBytes + kScaleBytes;
  static constexpr int kWeightSlices = kCodeBytes > 512 ? 1 : 2;
  static constexpr int kWeightTiles = kWeightSlices * kSliceTiles;

  static constexpr int kStageBytes = kN * kTileColumns * 2;    // tokens of a k-tile
  static constexpr int kTotalBytes = kN * kWarpgroupRows * 4;  // of a warpgroup
  static constexpr int kBarriers = kW * 2 * kSliceTiles;
  static constexpr int kAllocatedBytes = 1024 /* alignment */ + kW * kSliceTiles * kStageBytes +
                                         kW * 4 * kWeightSlices * kSliceBytes + kW * kTotalBytes +
                                         kBarriers * 8;
  static_assert(kAllocatedBytes <= 227 * 1024);
};

#ifdef NIBBLE_HAVE_WGMMA

// The CTA's shared memory.
template <typename Shape>
struct TurnStorage {
  std::byte* tokens;   // (kW, 4 k-tiles, kStageBytes), 1024-byte aligned
  std::byte* totals;   // (kW, kTotalBytes)
  std::byte* weights;  // (warps, kWeightSlices, kSliceBytes)
  uint64_t* full;      // (kW, 4 k-tiles): tokens are there
  uint64_t* free;      // (kW, 4 k-tiles): and have been read

  __device__ __forceinline__ explicit TurnStorage(std::byte* memory) {
    tokens = memory + (1024 - ptx::SharedAddress(memory) % 1024) % 1024;
    totals = tokens + Shape::kW * kSliceTiles * Shape::kStageBytes;
    weights = totals + Shape::kW * Shape::kTotalBytes;
    full = reinterpret_cast<uint64_t*>(weights +
                                       Shape::kW * 4 * Shape::kWeightSlices * Shape::kSliceBytes);
    free = full + Shape::kW * kSliceTiles;
  }
  __device__ __forceinline__ void Init() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Shape::kW * kSliceTiles; ++i) {
        ptx::BarrierInit(full + i, 1);
        ptx::BarrierInit(free + i, 4);
      }
      ptx::FenceBarrierInit();
    }
    __syncthreads();
  }
};

// The units of a warpgroup.
struct UnitWalk {
  int slices;      // of a group
  int groups;      // of the weight
  int step;        // warpgroups
  int group_step;  // CTAs
  int group;
  int slice;

  __device__ __forceinline__ bool done() const { return group >= groups; }
  __device__ __forceinline__ void Carry() {
    while (slice >= slices) {
      slice -= slices;
      group += group_step;
    }
  }
  __device__ __forceinline__ void Next() {
    slice += step;
    Carry();
  }
};

// A warp's own codes and scales: its row tile's slices of the warpgroup's units. A k-tile that has
// been read is replaced by that of the unit kWeightSlices later.
template <typename Shape>
struct UnitWeights {
  const WeightTiles& weight;
  std::byte* const ring;
  UnitWalk walk;   // of the unit to fill
  const int warp;  // of the warpgroup
  const std::byte* from = nullptr;
  int left = 0;  // k-tiles of that unit's row tile from its slice on
  int slot = 0;

  __device__ __forceinline__ UnitWeights(const WeightTiles& w, std::byte* memory,
                                         const UnitWalk& units, int warp_of_group)
      : weight(w), ring(memory), walk(units), warp(warp_of_group) {
    Enter();
    for (int i = 0; i < Shape::kWeightSlices; ++i) {
#pragma unroll
      for (int u = 0; u < kSliceTiles; ++u) Fill(u);
      NextSlice();
    }
  }
  __device__ __forceinline__ void Enter() {
    left = 0;
    if (walk.done()) return;
    // Past the weight's end whatever is there: it is not stored.
    const int tile = min(walk.group * 4 + warp, weight.row_tiles - 1);
    from = weight.data + tile * weight.row_tile_bytes + int64_t{walk.slice} * Shape::kSliceBytes +
           threadIdx.x % 32 * 16;
    left = weight.k_tiles - walk.slice * kSliceTiles;
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
    walk.Next();
    Enter();
  }
};

// Hands running totals from slice to slice, through a place per warpgroup. Named barriers say that
// a total is there and that it has been read.
template <typename Shape>
struct TotalRelay {
  static constexpr int kVectors = Shape::kN / 8;  // of a thread
  static constexpr int kThreads = 2 * kWarpgroupThreads;

  const TurnStorage<Shape>& storage;
  const int warpgroup;
  bool sent = false;

  __device__ __forceinline__ int after() const { return (warpgroup + 1) % Shape::kW; }
  // Of the total for a warpgroup.
  __device__ __forceinline__ static int There(int group) { return 1 + group; }
  __device__ __forceinline__ static int Read(int group) { return 1 + Shape::kW + group; }
  __device__ __forceinline__ int staging_barrier() const { return 1 + 2 * Shape::kW + warpgroup; }
  __device__ __forceinline__ std::byte* Place(int group) const {
    return storage.totals + group * Shape::kTotalBytes;
  }
  __device__ __forceinline__ float4* Mine(int group) const {
    return reinterpret_cast<float4*>(Place(group)) + threadIdx.x % kWarpgroupThreads;
  }

  // sum += the total so far.
  __device__ __forceinline__ void Receive(float (&sum)[Shape::kN / 2]) const {
    ptx::SyncThreads(There(warpgroup), kThreads);
    const float4* const place = Mine(warpgroup);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const float4 total = place[kWarpgroupThreads * i];
      sum[4 * i] = total.x + sum[4 * i];
      sum[4 * i + 1] = total.y + sum[4 * i + 1];
      sum[4 * i + 2] = total.z + sum[4 * i + 2];
      sum[4 * i + 3] = total.w + sum[4 * i + 3];
    }
  }
  // The place of this warpgroup's total is free.
  __device__ __forceinline__ void Free() const { ptx::ArriveThreads(Read(warpgroup), kThreads); }
  __device__ __forceinline__ void Send(const float (&total)[Shape::kN / 2]) {
    if (sent) ptx::SyncThreads(Read(after()), kThreads);
    sent = true;
    float4* const place = Mine(after());
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      place[kWarpgroupThreads * i] =
          make_float4(total[4 * i], total[4 * i + 1], total[4 * i + 2], total[4 * i + 3]);
    ptx::ArriveThreads(There(after()), kThreads);
  }
};

// One thread; `walk`: all units of the CTA.
template <typename Shape>
__device__ __forceinline__ void ProduceTurns(const TurnStorage<Shape>& storage,
                                             const PrefillParams& p, UnitWalk walk) {
  const uint32_t bytes = static_cast<uint32_t>(p.x.groups) * kPieceBytes;
  uint32_t phase = 1;
  for (int warpgroup = 0; !walk.done(); walk.Next()) {
    int x_tile = walk.slice * kSliceTiles;
    while (x_tile >= p.x.tiles) x_tile -= p.x.tiles;
    for (int u = 0; u < kSliceTiles; ++u) {
      const int stage = warpgroup * kSliceTiles + u;
      ptx::BarrierWait(storage.free + stage, phase);
      if (walk.slice * kSliceTiles + u >= p.weight.k_tiles) {
        ptx::BarrierArrive(storage.full + stage);
        continue;
      }
      ptx::BarrierExpect(storage.full + stage, bytes);
      ptx::BulkCopy(storage.tokens + stage * Shape::kStageBytes, p.x.data + int64_t{x_tile} * bytes,
                    bytes, storage.full + stage);
      if (++x_tile == p.x.tiles) x_tile = 0;
    }
    if (++warpgroup == Shape::kW) {
      warpgroup = 0;
      phase ^= 1;
    }
  }
}

// A consumer warpgroup. The first k-tile of a unit is decoded while the one before ends.
template <typename Shape>
struct TurnConsumer {
  using Scales = LaneScales<Shape::kFormat>;

  const TurnStorage<Shape>& storage;
  UnitWeights<Shape>& weights;
  const int warpgroup;
  const uint64_t tokens;  // descriptor of k-tile 0
  uint32_t phase = 0;
  Scales scales;        // of the unit
  uint32_t a[2][4][4];  // fragments of even and odd k-tiles

  __device__ __forceinline__ TurnConsumer(const TurnStorage<Shape>& s, UnitWeights<Shape>& w,
                                          int group)
      : storage(s),
        weights(w),
        warpgroup(group),
        tokens(ptx::WgmmaDescriptor(s.tokens + group * (kSliceTiles * Shape::kStageBytes))),
        scales(FirstScales()) {
    Decode(0);
  }

  __device__ __forceinline__ Scales FirstScales() const {
    weights.Wait();
    return Scales(weights.scales(), kSliceColumns, threadIdx.x % 32);
  }
  __device__ __forceinline__ void Release(int u) const {
    if (threadIdx.x % 32 == 0) ptx::BarrierArrive(storage.free + warpgroup * kSliceTiles + u);
  }
  // The A fragments of k-tile u of the unit; asks for the one that follows in its place.
  __device__ __forceinline__ void Decode(int u) {
    constexpr int kVectors = Shape::kCodeBytes / 512;
    const auto* lane = reinterpret_cast<const uint4*>(weights.codes(u)) + threadIdx.x % 32;
    uint4 codes[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) codes[v] = lane[32 * v];
    scales.Decode(codes, u, a[u % 2]);
    weights.Fill(u);
  }

  // sum = the unit's products from zero. tiles: of the slice, 4 unless it is the last.
  __device__ __forceinline__ void Multiply(int tiles, float (&sum)[Shape::kN / 2]) {
#pragma unroll
    for (int u = 0; u < kSliceTiles; ++u) {
      ptx::BarrierWait(storage.full + warpgroup * kSliceTiles + u, phase);
      if (u < tiles) {
        ptx::WgmmaFence();
#pragma unroll
        for (int j = 0; j < 4; ++j)
          ptx::WgmmaBf16<Shape::kN>(sum, a[u % 2][j],
                                    ptx::WgmmaDescriptorAt(tokens, u * Shape::kStageBytes + 32 * j),
                                    u > 0 || j > 0);
        ptx::WgmmaCommit();
        ptx::WgmmaWait<1>();
      } else {
        ptx::WgmmaWait<0>();
      }
      if (u > 0) Release(u - 1);
      if (u + 1 < kSliceTiles) {
        weights.Wait();
        Decode(u + 1);
      } else {
        weights.NextSlice();
        scales = FirstScales();
        Decode(0);
      }
    }
    ptx::WgmmaWait<0>();
    ptx::WgmmaPin(sum);
    Release(kSliceTiles - 1);
    phase ^= 1;
  }
};

template <typename Shape>
__device__ __forceinline__ void ConsumeTurns(const TurnStorage<Shape>& storage,
                                             const PrefillParams& p, UnitWalk walk, int warpgroup) {
  const int warp = threadIdx.x % kWarpgroupThreads / 32;
  constexpr int kRingBytes = Shape::kWeightSlices * Shape::kSliceBytes;
  UnitWeights<Shape> weights(p.weight, storage.weights + threadIdx.x / 32 * kRingBytes, walk, warp);
  ptx::LaunchSuccessor();
  TurnConsumer<Shape> consumer(storage, weights, warpgroup);
  TotalRelay<Shape> relay = {storage, warpgroup};
  const TileOutput out = {p.y, p.y_f32, p.y_stride, p.weight.n, p.add};
  ptx::WaitForPredecessor();
  for (; !walk.done(); walk.Next()) {
    const bool first = walk.slice == 0;
    const bool last = walk.slice + 1 == walk.slices;
    float sum[Shape::kN / 2];
    consumer.Multiply(p.weight.tiles_of(walk.slice), sum);
    if (!first) relay.Receive(sum);
    if (!last) {
      if (!first) relay.Free();
      relay.Send(sum);
      continue;
    }
    const int first_row = walk.group * kWarpgroupRows;
    const int row = first_row + warp * kTileRows + threadIdx.x % 32 / 4;
    const TileWork work = {.row_scales = p.weight.row_scales, .bias = p.bias};
    const RowEnds ends = {EndOf(work, out, row), EndOf(work, out, row + 8)};
    // y is staged where the total was: all warps must have theirs.
    ptx::SyncThreads(relay.staging_barrier(), kWarpgroupThreads);
    Store<Shape::kN>(out, sum, ends, first_row, 0, static_cast<int>(p.m), relay.Place(warpgroup),
                     relay.staging_barrier());
    if (!first) relay.Free();
  }
}

#endif  // NIBBLE_HAVE_WGMMA

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    TurnsKernel(const __grid_constant__ PrefillParams p) {
#ifdef NIBBLE_HAVE_WGMMA
  extern __shared__ std::byte turn_memory[];
  const TurnStorage<Shape> storage(turn_memory);
  storage.Init();
  // The shuffle tells the compiler that it is the same for the warp.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  UnitWalk walk = {.slices = p.weight.slices(),
                   .groups = (p.weight.row_tiles + 3) / 4,
                   .step = Shape::kW,
                   .group_step = static_cast<int>(gridDim.x),
                   .group = static_cast<int>(blockIdx.x),
                   .slice = warpgroup};
  if (warpgroup < Shape::kW) {
    walk.Carry();
    ConsumeTurns<Shape>(storage, p, walk, warpgroup);
  } else if (threadIdx.x % 32 == 0) {
    walk.step = 1;
    walk.slice = 0;
    ptx::WaitForPredecessor();
    ProduceTurns<Shape>(storage, p, walk);
  }
#endif
}

}  // namespace nibble::kernels::cuda
