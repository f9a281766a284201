// The kernel of turns.h for pairs: two CTAs of a cluster that have the same rows and split K.
//
// A CTA has up to 64 rows, in one pass. The warpgroups of both take slices in turn, as those of
// turns.cuh do, and the running total goes around all of them, in chunks that follow each other:
// within a CTA through shared memory, to the other one by st.async. As that takes a microsecond, a
// warpgroup multiplies two neighbouring slices, a run, before it waits for the total.
//
// So a warpgroup gets ahead of the others, and has a ring of its own for tokens, which one of its
// warps fills: in a ring that warpgroups share, a slot could be two phases behind the one that is
// waited for, which looks the same.
#pragma once

#include <algorithm>

#include "kernels/cuda/prefill/turns.cuh"
#include "kernels/cuda/ptx/cluster.cuh"

namespace nibble::kernels::cuda {

template <TileFormat kTileFormat, int kTokens>
struct PairShape {
  static constexpr TileFormat kFormat = kTileFormat;
  static constexpr int kN = kTokens;
  static constexpr int kTurns = PairTurnsOf(kFormat, kTokens);  // warpgroups of a CTA
  static constexpr int kThreads = kTurns * kWarpgroupThreads;
  // Of a thread, at most: 8 K stay for a CTA of the kernel that lays out the next tokens.
  static constexpr int kRegisters = (64 - 8) * 1024 / kThreads / 8 * 8;

  using Ring = SliceRing<kFormat>;
  static constexpr int kWeightBytes = kTurns * 4 * Ring::kBytes;
  static constexpr int kTileBytes = kN * kTileColumns * 2;  // tokens of a k-tile
  static constexpr int kTotalBytes = kN * kWarpgroupRows * 4;
  static constexpr int kChunks = kN == 16 ? 1 : kN == 128 ? 4 : 2;  // in which a total goes around
  static constexpr int kFixedBytes =
      1024 /* alignment */ + kWeightBytes + kTotalBytes + 512 /* barriers */;
  // A slot of tokens is a slice or a part of one. A warpgroup has as many as shared memory allows,
  // and no more than helps.
  static constexpr int kSlotTiles = kN == 128 ? 1 : kN == 64 ? 2 : kSliceTiles;
  static constexpr int kSlotBytes = kSlotTiles * kTileBytes;
  static constexpr int kSlots =
      std::min(2 * kSliceTiles / kSlotTiles, (227 * 1024 - kFixedBytes) / (kTurns * kSlotBytes));
  static constexpr int kRingBytes = kSlots * kSlotBytes;
  static_assert(kSlots > 1 && (2 * kTurns * kSlots + kChunks) * 8 <= 512);
  static constexpr int kAllocatedBytes = kFixedBytes + kTurns * kRingBytes;
};

#ifdef NIBBLE_HAVE_WGMMA

// The slices of a warpgroup, in ascending order. A round deals out runs of two or, if that is
// enough for what is left, single ones.
template <typename Shape>
struct RunWalk {
  static constexpr int kWarpgroups = 2 * Shape::kTurns;  // of a pair
  static constexpr int kRoundSlices = 2 * kWarpgroups;

  int slices;   // of the weight
  int singles;  // the first of a round of single ones; not below `slices`: there is none
  int turn;     // of the warpgroup, among the pair's
  int slice;
  bool second = false;  // of a run

  __device__ __forceinline__ RunWalk(int slice_count, int turn_of_pair)
      : slices(slice_count),
        singles((slice_count + kWarpgroups - 1) / kRoundSlices * kRoundSlices),
        turn(turn_of_pair),
        slice(singles > 0 ? 2 * turn_of_pair : turn_of_pair) {}

  __device__ __forceinline__ bool done() const { return slice >= slices; }
  // Whether the next slice is this warpgroup's, too.
  __device__ __forceinline__ bool GoesOn() const {
    return !second && slice < singles && slice + 1 < slices;
  }
  __device__ __forceinline__ void Next() {
    if (GoesOn()) {
      second = true;
      ++slice;
      return;
    }
    slice += kRoundSlices - (second ? 1 : 0);
    second = false;
    if (slice >= singles) slice -= turn;
  }
};

// The CTA's shared memory.
template <typename Shape>
struct PairStorage {
  std::byte* tokens;           // (kTurns, kSlots, kSlotTiles, kTileBytes), 1024-byte aligned
  std::byte* total;            // kTotalBytes
  std::byte* weights;          // (warps, Ring::kBytes)
  ptx::BytesBarrier* arrived;  // (kChunks): of the total from the other CTA
  uint64_t* full;              // (kTurns, kSlots): tokens are there
  uint64_t* free;              // (kTurns, kSlots): and have been read

  __device__ __forceinline__ explicit PairStorage(std::byte* memory) {
    tokens = memory + (1024 - ptx::SharedAddress(memory) % 1024) % 1024;
    total = tokens + Shape::kTurns * Shape::kRingBytes;
    weights = total + Shape::kTotalBytes;
    arrived = reinterpret_cast<ptx::BytesBarrier*>(weights + Shape::kWeightBytes);
    full = reinterpret_cast<uint64_t*>(arrived + Shape::kChunks);
    free = full + Shape::kTurns * Shape::kSlots;
  }
  __device__ __forceinline__ void Init() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Shape::kTurns * Shape::kSlots; ++i) {
        ptx::BarrierInit(full + i, 1);
        ptx::BarrierInit(free + i, 4);
      }
      for (int i = 0; i < Shape::kChunks; ++i) {
        arrived[i].Init();
        arrived[i].Expect(Shape::kTotalBytes / Shape::kChunks);
      }
      ptx::FenceBarrierInit();
    }
    __syncthreads();
    ptx::ArriveAtCluster();
  }
};

// A warp's weights: its row tile of the warpgroup's slices.
template <typename Shape>
struct PairWeights : Shape::Ring {
  using Ring = typename Shape::Ring;
  static_assert(Ring::kPlaces == 2);

  RunWalk<Shape> walk;  // of the slice to fill

  // A warp without a row tile decodes whatever is there, and its sums are not stored.
  __device__ __forceinline__ PairWeights(const WeightTiles& weight, std::byte* memory,
                                         const RunWalk<Shape>& slices, int row_tile, bool has_rows)
      : Ring(memory), walk(slices) {
    if (has_rows)
      this->ReadFrom(
          weight.data + row_tile * weight.row_tile_bytes + int64_t{walk.slice} * Ring::kSliceBytes,
          weight.k_tiles - walk.slice * kSliceTiles);
    for (int i = 0; i < Ring::kPlaces; ++i) HasReadSlice();
  }
  __device__ __forceinline__ void HasReadSlice() {
    this->FillSlice();
    this->NextPlace();
    const int before = walk.slice;
    walk.Next();
    this->SkipSlices(walk.slice - before);
  }
};

// The tokens of a warpgroup's slices, on their way through its ring.
template <typename Shape>
struct PairTokens {
  static constexpr int kSlotsOfSlice = kSliceTiles / Shape::kSlotTiles;

  const uint32_t ring;  // addresses in shared memory
  const uint32_t full;
  const uint32_t free;
  const uint64_t descriptor;  // of slot 0
  const std::byte* const x;   // of the part
  const int x_tiles;
  const bool copies;               // this warp
  SlotOf<Shape::kSlots> at;        // to be read next
  SlotOf<Shape::kSlots> refilled;  // next
  RunWalk<Shape> walk;             // of what comes there
  int piece = 0;                   // of the slice

  __device__ __forceinline__ PairTokens(const PairStorage<Shape>& storage, const PrefillParams& p,
                                        const RunWalk<Shape>& slices, int turn, int part,
                                        bool is_copier)
      : ring(ptx::SharedAddress(storage.tokens + turn * Shape::kRingBytes)),
        full(ptx::SharedAddress(storage.full + turn * Shape::kSlots)),
        free(ptx::SharedAddress(storage.free + turn * Shape::kSlots)),
        descriptor(ptx::WgmmaDescriptor(storage.tokens + turn * Shape::kRingBytes)),
        x(p.x.data + int64_t{part} * p.x.tiles * Shape::kTileBytes),
        x_tiles(p.x.tiles),
        copies(is_copier),
        walk(slices) {
    if (!copies) return;
    for (int i = 0; i < Shape::kSlots; ++i) Fill();
  }
  __device__ __forceinline__ void Fill() {
    if (walk.done()) return;
    const int tile = walk.slice * kSliceTiles + piece * Shape::kSlotTiles;
    const int tiles = min(Shape::kSlotTiles, x_tiles - tile);
    if (tiles > 0)
      ptx::BulkCopyOfWarp(ring + refilled.slot * Shape::kSlotBytes,
                          x + int64_t{tile} * Shape::kTileBytes, tiles * Shape::kTileBytes,
                          full + refilled.slot * 8);
    refilled.Advance(1);
    if (kSlotsOfSlice > 1 && ++piece < kSlotsOfSlice) return;
    piece = 0;
    walk.Next();
  }

  __device__ __forceinline__ void Await() const {
    ptx::BarrierWaitAt(full + at.slot * 8, at.phase);
  }
  // K-tile i of the slot.
  __device__ __forceinline__ uint64_t Tile(int i) const {
    return ptx::WgmmaDescriptorAt(descriptor, at.slot * Shape::kSlotBytes + i * Shape::kTileBytes);
  }
  // By this warp.
  __device__ __forceinline__ void HasRead(int slot) const {
    if (threadIdx.x % 32 == 0) ptx::BarrierArriveAt(free + slot * 8);
  }
  // The slot that has been read first, once all four warps have.
  __device__ __forceinline__ void Refill() {
    if (!copies || walk.done()) return;
    ptx::BarrierWaitAt(free + refilled.slot * 8, refilled.phase ^ 1);
    Fill();
  }
};

// Hands the running total from run to run. Named barriers say that it is there. The last warpgroup
// of a CTA sends it to the first of the other one: its place there is free, as the total has come
// by since. Nothing is sent that is not waited for, so that a CTA may end before the other one.
template <typename Shape>
struct PairRelay {
  static constexpr int kVectors = Shape::kN / 8 / Shape::kChunks;  // of a thread
  static constexpr int kThreads = 2 * kWarpgroupThreads;

  float4* const place;  // the thread's
  ptx::BytesBarrier* const arrived;
  const int turn;  // in the CTA
  const int peer;
  uint32_t phase = 0;  // of `arrived`

  __device__ __forceinline__ PairRelay(const PairStorage<Shape>& storage, int turn_in_cta, int rank)
      : place(reinterpret_cast<float4*>(storage.total) + threadIdx.x % kWarpgroupThreads),
        arrived(storage.arrived),
        turn(turn_in_cta),
        peer(1 - rank) {}

  // sum += chunk c of the total so far.
  __device__ __forceinline__ void Receive(int c, float (&sum)[Shape::kN / 2]) {
    if (turn == 0) {
      arrived[c].Wait(phase);
      if (threadIdx.x % kWarpgroupThreads == 0)
        arrived[c].Expect(Shape::kTotalBytes / Shape::kChunks);
      if (c + 1 == Shape::kChunks) phase ^= 1;
    } else {
      ptx::SyncThreads(1 + c * Shape::kTurns + turn, kThreads);
    }
#pragma unroll
    for (int i = c * kVectors; i < (c + 1) * kVectors; ++i) {
      const float4 total = place[kWarpgroupThreads * i];
      sum[4 * i] = total.x + sum[4 * i];
      sum[4 * i + 1] = total.y + sum[4 * i + 1];
      sum[4 * i + 2] = total.z + sum[4 * i + 2];
      sum[4 * i + 3] = total.w + sum[4 * i + 3];
    }
  }
  __device__ __forceinline__ void Send(int c, const float (&total)[Shape::kN / 2]) const {
    if (turn + 1 == Shape::kTurns) {
#pragma unroll
      for (int i = c * kVectors; i < (c + 1) * kVectors; ++i)
        arrived[c].Send(reinterpret_cast<float*>(place + kWarpgroupThreads * i), peer,
                        {total[4 * i], total[4 * i + 1], total[4 * i + 2], total[4 * i + 3]});
      return;
    }
#pragma unroll
    for (int i = c * kVectors; i < (c + 1) * kVectors; ++i)
      place[kWarpgroupThreads * i] =
          make_float4(total[4 * i], total[4 * i + 1], total[4 * i + 2], total[4 * i + 3]);
    ptx::ArriveThreads(2 + c * Shape::kTurns + turn, kThreads);
  }
};

// A consumer warpgroup. The first k-tile of a slice is decoded while the one before ends.
template <typename Shape>
struct PairConsumer {
  using Scales = LaneScales<Shape::kFormat>;
  using Sum = float[Shape::kN / 2];

  PairWeights<Shape>& weights;
  PairTokens<Shape>& tokens;
  Scales scales;        // of the slice
  uint32_t a[2][4][4];  // fragments of even and odd k-tiles

  __device__ __forceinline__ PairConsumer(PairWeights<Shape>& w, PairTokens<Shape>& t)
      : weights(w), tokens(t), scales(FirstScales()) {
    Decode(0);
  }
  __device__ __forceinline__ Scales FirstScales() const {
    weights.WaitForSlice();
    return Scales(weights.scales(), kSliceColumns, threadIdx.x % 32);
  }
  // The A fragments of k-tile u of the slice.
  __device__ __forceinline__ void Decode(int u) {
    const uint4 codes[1] = {weights.Codes(u, 0)};
    scales.Decode(codes, u, a[u % 2]);
    if (u == kSliceTiles - 1) weights.HasReadSlice();
  }

  // sum = the products of a slice from zero.
  __device__ __forceinline__ void Multiply(int slice, Sum& sum) {
    constexpr int kSlotTiles = Shape::kSlotTiles;
    int tiles = min(kSliceTiles, tokens.x_tiles - slice * kSliceTiles);
    asm("" : "+r"(tiles));  // to be compared, not computed four times
    int used = 0;
#pragma unroll
    for (int u = 0; u < kSliceTiles; ++u) {
      const bool next_slot = u > 0 && u % kSlotTiles == 0;
      if (next_slot) {
        used = tokens.at.slot;
        tokens.at.Advance(1);
      }
      if (u == 0 || u < tiles) {
        if (u % kSlotTiles == 0) tokens.Await();
        ptx::WgmmaFence();
#pragma unroll
        for (int j = 0; j < 4; ++j)
          ptx::WgmmaBf16<Shape::kN>(sum, a[u % 2][j],
                                    ptx::WgmmaDescriptorAt(tokens.Tile(u % kSlotTiles), 32 * j),
                                    u > 0 || j > 0);
        ptx::WgmmaCommit();
        if (u > 0) ptx::WgmmaWait<1>();
      } else {
        ptx::WgmmaWait<0>();
      }
      if (next_slot) tokens.HasRead(used);
      // A k-tile later, if that is not too late: the other warps have read it, too.
      if (u >= kSlotTiles && u % kSlotTiles == (kSlotTiles > 1 ? 1 : 0)) tokens.Refill();
      if (u + 1 < kSliceTiles) {
        Decode(u + 1);
      } else {
        scales = FirstScales();
        Decode(0);
        ptx::WgmmaPin(a[0]);  // before the wait
      }
    }
    ptx::WgmmaWait<0>();
    ptx::WgmmaPin(sum);
    tokens.HasRead(tokens.at.slot);
    tokens.at.Advance(1);
    tokens.Refill();
  }
};

#endif  // NIBBLE_HAVE_WGMMA

// CTAs (along rows: of a pair neighbours, parts of the tokens).
template <typename Shape>
__global__ void __maxnreg__(Shape::kRegisters)
    PairsKernel(const __grid_constant__ PrefillParams p, const __grid_constant__ TurnPlan plan) {
#ifdef NIBBLE_HAVE_WGMMA
  using Sum = typename PairConsumer<Shape>::Sum;
  extern __shared__ std::byte turn_memory[];
  const PairStorage<Shape> storage(turn_memory);
  storage.Init();
  // The shuffles tell the compiler what is the same for the warp.
  const int turn = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  const int warp = __shfl_sync(~0u, threadIdx.x % kWarpgroupThreads / 32, 0);
  const int rank = static_cast<int>(blockIdx.x % 2);
  const RowShare rows(plan, static_cast<int>(blockIdx.x / 2));
  RunWalk<Shape> walk(p.weight.slices(), rank * Shape::kTurns + turn);
  const int row_tile = rows.begin + warp;
  PairWeights<Shape> weights(p.weight, storage.weights + threadIdx.x / 32 * Shape::Ring::kBytes,
                             walk, row_tile, row_tile < rows.end);
  ptx::LaunchSuccessor();
  ptx::WaitForPredecessor();
  PairTokens<Shape> tokens(storage, p, walk, turn, static_cast<int>(blockIdx.y), warp == turn);
  PairConsumer<Shape> consumer(weights, tokens);
  PairRelay<Shape> relay(storage, turn, rank);
  const LayingOutput out = LayingOutputOf(p, min(p.weight.n, rows.end * kTileRows));
  const TileWork work = {.row_scales = p.weight.row_scales,
                         .bias = p.bias,
                         .row_tile = rows.begin,
                         .tokens = static_cast<int>(p.m)};
  ptx::WaitForCluster();
  for (; !walk.done(); walk.Next()) {
    const int slice = walk.slice;
    const bool goes_on = walk.GoesOn();
    const bool last = slice + (goes_on ? 2 : 1) == walk.slices;
    TileEnd end = {};
    if (last) end = EndOf<Shape::kN>(work, out, 0, static_cast<int>(blockIdx.y));
    Sum sum, second;
    consumer.Multiply(slice, sum);
    if (goes_on) {
      walk.Next();
      consumer.Multiply(slice + 1, second);
    }
#pragma unroll
    for (int c = 0; c < Shape::kChunks; ++c) {
      if (slice > 0) relay.Receive(c, sum);
      if (goes_on) {
#pragma unroll
        for (int i = 0; i < Shape::kN / 2 / Shape::kChunks; ++i) {
          const int j = c * (Shape::kN / 2 / Shape::kChunks) + i;
          sum[j] += second[j];
        }
      }
      if (!last) relay.Send(c, sum);
    }
    if (!last) continue;
    // What was a slot of tokens stages y, once all warps have read that.
    constexpr int kStagingBarrier = 1 + Shape::kTurns * Shape::kChunks;
    ptx::SyncThreads(kStagingBarrier, kWarpgroupThreads);
    return Store<Shape::kN>(out, sum, end, storage.tokens + turn * Shape::kRingBytes,
                            kStagingBarrier);
  }
#endif
}

template <TileFormat kFormat, int kTokens>
void LaunchPairShape(const PrefillParams& p, const TurnPlan& plan, cudaStream_t stream) {
  using Shape = PairShape<kFormat, kTokens>;
  LaunchPdlCluster(PairsKernel<Shape>, dim3(plan.row_ctas * 2, plan.parts), dim3(Shape::kThreads),
                   dim3(2), Shape::kAllocatedBytes, stream, p, plan);
}

template <TileFormat kFormat>
void LaunchPairFormat(const PrefillParams& p, const TurnPlan& plan, cudaStream_t stream) {
  if (plan.tokens == 16) return LaunchPairShape<kFormat, 16>(p, plan, stream);
  if (plan.tokens == 32) return LaunchPairShape<kFormat, 32>(p, plan, stream);
  if (plan.tokens == 64) return LaunchPairShape<kFormat, 64>(p, plan, stream);
  LaunchPairShape<kFormat, 128>(p, plan, stream);
}

}  // namespace nibble::kernels::cuda
