// The kernel of turns.h.
//
// A CTA takes a contiguous share of the row tiles, in passes over K of up to kGroups groups of 64
// rows, four row tiles. A unit is a slice of 256 columns in a pass. kTurns warpgroups per row group
// take units in turn: each multiplies its unit from zero by wgmma, its warps decoding a row tile
// each into A fragments, waits for the running total of the slices before, adds its own and leaves
// the total in shared memory to the warpgroup of the next slice. So several slices are under way at
// a time, and still they are added one after the other. The last one's warpgroup stores y. Where
// there are rows enough for all warpgroups (kTurns = 1) the total stays in registers.
//
// Every warp copies its codes and scales itself (cp.async, two slices ahead), from before the wait
// for the predecessor on. Tokens come in a ring of slices, for all row groups: the warpgroup that
// has used a slot asks for what comes into it next, once all have used it. (A warp of its own for
// that would cost every other one a quarter of its registers.)
//
// Where rows are few, two CTAs may have the same ones: turn_pairs.cuh. Clusters whose CTAs bring
// each other the tokens were slower, though for tens of tokens these are more bytes than the
// weights: their slots are free only when both CTAs have used them.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/prefill/slice_ring.cuh"
#include "kernels/cuda/prefill/tile_product.cuh"
#include "kernels/cuda/prefill/turns_kernels.h"

namespace nibble::kernels::cuda {

template <TileFormat kTileFormat, int kTokens, int kRowGroups, int kTurnsOfGroup>
struct TurnShape {
  static constexpr TileFormat kFormat = kTileFormat;
  static constexpr int kN = kTokens;
  static constexpr int kGroups = kRowGroups;
  static constexpr int kTurns = kTurnsOfGroup;
  static constexpr int kW = kGroups * kTurns;  // warpgroups
  static constexpr int kThreads = kW * kWarpgroupThreads;
  // Of a thread, at most. Where they are enough, 8 K stay for a CTA of the kernel that lays out the
  // next tokens.
  static constexpr int kRegisters = (kN == 64 && kGroups == 4 ? 64 : 56) * 1024 / kThreads / 8 * 8;

  using Ring = SliceRing<kFormat>;
  static constexpr int kWeightBytes = kW * 4 * Ring::kBytes;
  static constexpr int kTileBytes = kN * kTileColumns * 2;  // tokens of a k-tile
  static constexpr int kSlotBytes = kSliceTiles * kTileBytes;
  static constexpr int kTotalBytes = kTurns > 1 ? kN* kWarpgroupRows * 4 : 0;  // of a row group
  static constexpr int kStagingBytes = kN * kWarpgroupRows * 2;
  // As shared memory allows, and no more than helps.
  static constexpr int kFixedBytes = 1024 /* alignment */ + kWeightBytes +
                                     kGroups * (kTotalBytes + kStagingBytes) + 256 /* barriers */;
  static constexpr int kSlots = std::min(kTurns + 4, (227 * 1024 - kFixedBytes) / kSlotBytes);
  static_assert(kSlots > kTurns && (2 * kSlots + kGroups) * 8 <= 256);
  static constexpr int kAllocatedBytes = kFixedBytes + kSlots * kSlotBytes;
};

#ifdef NIBBLE_HAVE_WGMMA

// The CTA's shared memory.
template <typename Shape>
struct TurnStorage {
  std::byte* tokens;   // (kSlots, 4 k-tiles, kTileBytes), 1024-byte aligned
  std::byte* staging;  // of y: (kGroups, kStagingBytes)
  std::byte* totals;   // (kGroups, kTotalBytes)
  std::byte* weights;  // (warps, Ring::kBytes)
  uint64_t* full;      // (kSlots): tokens are there
  uint64_t* free;      // (kSlots): and have been read
  uint64_t* stored;    // (kGroups): y of a pass

  __device__ __forceinline__ explicit TurnStorage(std::byte* memory) {
    tokens = memory + (1024 - ptx::SharedAddress(memory) % 1024) % 1024;
    staging = tokens + Shape::kSlots * Shape::kSlotBytes;
    totals = staging + Shape::kGroups * Shape::kStagingBytes;
    weights = totals + Shape::kGroups * Shape::kTotalBytes;
    full = reinterpret_cast<uint64_t*>(weights + Shape::kWeightBytes);
    free = full + Shape::kSlots;
    stored = free + Shape::kSlots;
  }
  __device__ __forceinline__ void Init() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < Shape::kSlots; ++i) {
        ptx::BarrierInit(full + i, 1);
        ptx::BarrierInit(free + i, 4 * Shape::kGroups);
      }
      for (int i = 0; i < Shape::kGroups; ++i) ptx::BarrierInit(stored + i, 4);
      ptx::FenceBarrierInit();
    }
    __syncthreads();
  }
};

// Units in ascending order, every step-th of them.
struct UnitWalk {
  int slices;  // of a pass
  int passes;
  int step;
  int pass = 0;
  int slice = 0;

  __device__ __forceinline__ bool done() const { return pass >= passes; }
  __device__ __forceinline__ bool first() const { return slice == 0; }
  __device__ __forceinline__ bool last() const { return slice + 1 == slices; }
  // Units from this one to the end.
  __device__ __forceinline__ int left() const { return (passes - pass) * slices - slice; }
  __device__ __forceinline__ void Carry() {
    while (slice >= slices) {
      slice -= slices;
      ++pass;
    }
  }
  __device__ __forceinline__ void Next() {
    slice += step;
    Carry();
  }
};

// The slot of a unit, and in which phase its barriers are.
template <int kSlots>
struct SlotOf {
  int slot = 0;
  uint32_t phase = 0;

  // By fewer than kSlots units.
  __device__ __forceinline__ void Advance(int units) {
    slot += units;
    if (slot < kSlots) return;
    slot -= kSlots;
    phase ^= 1;
  }
};

// The row tiles of a CTA.
struct RowShare {
  int begin;
  int end;
  int pass_tiles;

  __device__ __forceinline__ RowShare(const TurnPlan& plan, int cta)
      : begin(cta * plan.share + min(cta, plan.larger)),
        end(begin + plan.share + (cta < plan.larger ? 1 : 0)),
        pass_tiles(plan.pass_tiles) {}
  __device__ __forceinline__ int PassEnd(int pass) const {
    return min(end, begin + (pass + 1) * pass_tiles);
  }
  // Whether a row group has tiles in a pass. Of the last one it may have none.
  __device__ __forceinline__ bool Has(int pass, int group) const {
    return begin + pass * pass_tiles + group * (kWarpgroupRows / kTileRows) < PassEnd(pass);
  }
};

// A warp's weights: those of the warpgroup's units. A place is filled k-tile by k-tile where a warp
// has one alone, else all at once, which takes fewer instructions.
template <typename Shape>
struct UnitWeights : Shape::Ring {
  using Ring = typename Shape::Ring;

  const WeightTiles& weight;
  const RowShare& rows;
  const int tile_of_pass;  // the warp's row tile
  UnitWalk walk;           // of the unit to fill

  __device__ __forceinline__ UnitWeights(const WeightTiles& w, const RowShare& r, std::byte* memory,
                                         const UnitWalk& units, int tile)
      : Ring(memory), weight(w), rows(r), tile_of_pass(tile), walk(units) {
    Enter();
    for (int i = 0; i < Ring::kPlaces; ++i) {
#pragma unroll
      for (int u = 0; u < kSliceTiles; ++u) HasRead(u);
    }
  }
  __device__ __forceinline__ void Await(int u) const {
    if constexpr (Ring::kPlaces == 1) {
      this->Wait();
    } else if (u == 0) {
      this->WaitForSlice();
    }
  }
  // K-tile u of the place, so that it can be filled again. After the fourth comes the next place.
  __device__ __forceinline__ void HasRead(int u) {
    if constexpr (Ring::kPlaces == 1) {
      this->Fill(u);
    } else if (u == kSliceTiles - 1) {
      this->FillSlice();
    }
    if (u == kSliceTiles - 1) NextSlice();
  }
  // A warp without a row tile in a pass decodes whatever is there, and its sums are not stored.
  __device__ __forceinline__ void Enter() {
    this->left = 0;
    const int tile = rows.begin + walk.pass * rows.pass_tiles + tile_of_pass;
    if (walk.done() || tile >= rows.PassEnd(walk.pass)) return;
    this->ReadFrom(
        weight.data + tile * weight.row_tile_bytes + int64_t{walk.slice} * Ring::kSliceBytes,
        weight.k_tiles - walk.slice * kSliceTiles);
  }
  __device__ __forceinline__ void NextSlice() {
    this->NextPlace();
    walk.slice += Shape::kTurns;
    this->SkipSlices(Shape::kTurns);
    if (walk.slice < walk.slices) return;
    walk.Carry();
    Enter();
  }
};

// Hands the running total of a row group from slice to slice. Named barriers say that it is there;
// and, at the first slice of a pass, that the last total of the pass before has been read.
template <typename Shape>
struct TotalRelay {
  static constexpr int kVectors = Shape::kN / 8;  // of a thread
  static constexpr int kThreads = 2 * kWarpgroupThreads;

  float4* const place;  // the thread's
  const int warpgroup;
  const int after;

  __device__ __forceinline__ TotalRelay(const TurnStorage<Shape>& storage, int group, int turn)
      : place(reinterpret_cast<float4*>(storage.totals + group * Shape::kTotalBytes) +
              threadIdx.x % kWarpgroupThreads),
        warpgroup(group * Shape::kTurns + turn),
        after(group * Shape::kTurns + (turn + 1) % Shape::kTurns) {}

  // Of the total for a warpgroup.
  __device__ __forceinline__ static int There(int group) { return 1 + group; }
  __device__ __forceinline__ static int Free(int group) { return 1 + Shape::kW + group; }

  // sum += the total so far.
  __device__ __forceinline__ void Receive(float (&sum)[Shape::kN / 2]) const {
    ptx::SyncThreads(There(warpgroup), kThreads);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const float4 total = place[kWarpgroupThreads * i];
      sum[4 * i] = total.x + sum[4 * i];
      sum[4 * i + 1] = total.y + sum[4 * i + 1];
      sum[4 * i + 2] = total.z + sum[4 * i + 2];
      sum[4 * i + 3] = total.w + sum[4 * i + 3];
    }
  }
  __device__ __forceinline__ void Send(const float (&total)[Shape::kN / 2]) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      place[kWarpgroupThreads * i] =
          make_float4(total[4 * i], total[4 * i + 1], total[4 * i + 2], total[4 * i + 3]);
    ptx::ArriveThreads(There(after), kThreads);
  }
  __device__ __forceinline__ void HandOnPlace() const { ptx::ArriveThreads(Free(after), kThreads); }
  __device__ __forceinline__ void AwaitPlace() const {
    ptx::SyncThreads(Free(warpgroup), kThreads);
  }
};

// Fills slots with slices of the tokens; by a warp.
template <typename Shape>
struct TokenCopies {
  const TurnStorage<Shape>& storage;
  const WeightTiles& weight;
  const std::byte* const x;  // of the part
  const int x_tiles;

  __device__ __forceinline__ TokenCopies(const TurnStorage<Shape>& s, const PrefillParams& p,
                                         int part)
      : storage(s),
        weight(p.weight),
        x(p.x.data + int64_t{part} * p.x.tiles * Shape::kTileBytes),
        x_tiles(p.x.tiles) {}

  __device__ __forceinline__ void Fill(int slice, int slot) const {
    const int tiles = weight.tiles_of(slice);
    if constexpr (Shape::kFormat != TileFormat::kBf16) {  // others have one plane
      ptx::BulkCopyOfWarp(ptx::SharedAddress(storage.tokens) + slot * Shape::kSlotBytes,
                          x + int64_t{slice} * Shape::kSlotBytes, tiles * Shape::kTileBytes,
                          ptx::SharedAddress(storage.full + slot));
      return;
    }
    ptx::BarrierExpectIf(threadIdx.x % 32 == 0, storage.full + slot, tiles * Shape::kTileBytes);
    int x_tile = slice * kSliceTiles;
    while (x_tile >= x_tiles) x_tile -= x_tiles;
    // Planes of a weight may meet within a slice.
    const int before = min(tiles, x_tiles - x_tile);
    Copy(x_tile, before, slot, 0);
#pragma unroll 1
    for (int u = before; u < tiles; ++u) Copy((x_tile + u) % x_tiles, 1, slot, u);
  }
  // Neighbouring k-tiles of x to the slot's k-tiles from u on.
  __device__ __forceinline__ void Copy(int x_tile, int tiles, int slot, int u) const {
    ptx::BulkCopyIf(
        threadIdx.x % 32 == 0, storage.tokens + slot * Shape::kSlotBytes + u * Shape::kTileBytes,
        x + int64_t{x_tile} * Shape::kTileBytes, tiles * Shape::kTileBytes, storage.full + slot);
  }
};

// A consumer warpgroup. The first k-tile of a unit is decoded while the one before ends.
template <typename Shape>
struct TurnConsumer {
  using Scales = LaneScales<Shape::kFormat>;
  using UnitSum = float[Shape::kN / 2];

  const TurnStorage<Shape>& storage;
  UnitWeights<Shape>& weights;
  const TokenCopies<Shape>& copies;
  const uint64_t tokens;  // descriptor of slot 0
  const int copier;       // this warp fills slots that are this modulo 4; -1: none
  SlotOf<Shape::kSlots> at;
  SlotOf<Shape::kSlots> refilled;  // next
  UnitWalk refill;                 // what comes there
  Scales scales;                   // of the unit
  uint32_t a[2][4][4];             // fragments of even and odd k-tiles

  __device__ __forceinline__ TurnConsumer(const TurnStorage<Shape>& s, UnitWeights<Shape>& w,
                                          const TokenCopies<Shape>& c, const UnitWalk& units,
                                          int turn, int first_slot)
      : storage(s),
        weights(w),
        copies(c),
        tokens(ptx::WgmmaDescriptor(s.tokens)),
        copier(first_slot),
        refill(units),
        scales(FirstScales()) {
    at.Advance(turn);
    refilled = at;
    refill.slice += Shape::kSlots;
    refill.Carry();
    Decode(0);
  }

  __device__ __forceinline__ Scales FirstScales() const {
    weights.Await(0);
    return Scales(weights.scales(), kSliceColumns, threadIdx.x % 32);
  }
  // The slot may be filled again.
  __device__ __forceinline__ void Release() const {
    if (threadIdx.x % 32 == 0) ptx::BarrierArrive(storage.free + at.slot);
  }
  // A unit in which the row group has no tiles. That its tokens are there says that the slot's unit
  // before has been released by all.
  __device__ __forceinline__ void PassOver(const UnitWalk& unit) {
    if (unit.left() > Shape::kSlots) {
      ptx::BarrierWait(storage.full + at.slot, at.phase);
      Release();
    }
    at.Advance(Shape::kTurns);
  }
  // What comes into the slot of the warpgroup's last unit: at the end of it, or where other row
  // groups use the slot, too, a little later.
  __device__ __forceinline__ void Refill() {
    if (refill.done()) return;
    if ((refilled.slot & 3) == copier) {
      ptx::BarrierWait(storage.free + refilled.slot, refilled.phase);
      copies.Fill(refill.slice, refilled.slot);
    }
    refill.Next();
    refilled.Advance(Shape::kTurns);
  }
  // The A fragments of k-tile u of the unit; asks for the one that follows in its place.
  __device__ __forceinline__ void Decode(int u) {
    constexpr int kVectors = Shape::Ring::kCodeBytes / 512;
    uint4 codes[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) codes[v] = weights.Codes(u, v);
    scales.Decode(codes, u, a[u % 2]);
    weights.HasRead(u);
  }

  // sum = the unit's products from zero. `begun`: not the warpgroup's first.
  __device__ __forceinline__ void Multiply(const UnitWalk& unit, bool begun, UnitSum& sum) {
    int tiles = weights.weight.tiles_of(unit.slice);
    asm("" : "+r"(tiles));  // to be compared, not computed four times
    const uint64_t slot = ptx::WgmmaDescriptorAt(tokens, at.slot * Shape::kSlotBytes);
    ptx::BarrierWait(storage.full + at.slot, at.phase);
#pragma unroll
    for (int u = 0; u < kSliceTiles; ++u) {
      if (u == 0 || u < tiles) {
        ptx::WgmmaFence();
#pragma unroll
        for (int j = 0; j < 4; ++j)
          ptx::WgmmaBf16<Shape::kN>(sum, a[u % 2][j],
                                    ptx::WgmmaDescriptorAt(slot, u * Shape::kTileBytes + 32 * j),
                                    u > 0 || j > 0);
        ptx::WgmmaCommit();
        if (u > 0) ptx::WgmmaWait<1>();
      } else {
        ptx::WgmmaWait<0>();
      }
      if (Shape::kGroups > 1 && u == 0 && begun) Refill();
      if (u + 1 < kSliceTiles) {
        weights.Await(u + 1);
        Decode(u + 1);
      } else {
        scales = FirstScales();
        Decode(0);
        ptx::WgmmaPin(a[0]);  // before the wait
      }
    }
    ptx::WgmmaWait<0>();
    ptx::WgmmaPin(sum);
    Release();
    if (Shape::kGroups == 1) Refill();
    at.Advance(Shape::kTurns);
  }
};

// A warpgroup's work.
template <typename Shape>
struct TurnWork {
  static constexpr int kStagingBarrier = 1 + 2 * Shape::kW;

  const TurnStorage<Shape>& storage;
  const PrefillParams& p;
  const RowShare& rows;
  const int part;
  const int group;
  const int turn;

  // What becomes of the sums of a pass.
  __device__ __forceinline__ TileEnd EndOfPass(int pass) const {
    const TileWork work = {.row_scales = p.weight.row_scales,
                           .bias = p.bias,
                           .row_tile = rows.begin + pass * rows.pass_tiles,
                           .tokens = static_cast<int>(p.m)};
    return EndOf<Shape::kN>(work, OutputOfPass(pass), group, part);
  }
  __device__ __forceinline__ LayingOutput OutputOfPass(int pass) const {
    return LayingOutputOf(p, min(p.weight.n, rows.PassEnd(pass) * kTileRows));
  }
  // y of a pass, from its finished total.
  __device__ __forceinline__ void StorePass(int pass, const float (&total)[Shape::kN / 2],
                                            const TileEnd& end) const {
    // Another warpgroup of the row group may have stored the pass before.
    if (Shape::kTurns > 1 && pass > 0) ptx::BarrierWait(storage.stored + group, (pass - 1) & 1);
    Store<Shape::kN>(OutputOfPass(pass), total, end, storage.staging + group * Shape::kStagingBytes,
                     kStagingBarrier + group);
    if (Shape::kTurns > 1 && threadIdx.x % 32 == 0) ptx::BarrierArrive(storage.stored + group);
  }

  // all: units of the CTA.
  __device__ __forceinline__ void Run(const UnitWalk& all) const {
    UnitWalk walk = all;
    walk.step = Shape::kTurns;
    walk.slice = turn;
    walk.Carry();
    const int warp = __shfl_sync(~0u, threadIdx.x % kWarpgroupThreads / 32, 0);
    UnitWeights<Shape> weights(p.weight, rows,
                               storage.weights + threadIdx.x / 32 * Shape::Ring::kBytes, walk,
                               group * (kWarpgroupRows / kTileRows) + warp);
    ptx::LaunchSuccessor();
    const TokenCopies<Shape> copies(storage, p, part);
    ptx::WaitForPredecessor();
    if (group == 0 && turn == 0 && warp == 0) {
      UnitWalk unit = all;
      for (int slot = 0; slot < Shape::kSlots && !unit.done(); ++slot, unit.Next())
        copies.Fill(unit.slice, slot);
    }
    TurnConsumer<Shape> consumer(storage, weights, copies, walk, turn, group == 0 ? warp : -1);
    if constexpr (Shape::kTurns == 1) {
      AddUp(consumer, walk);
    } else {
      Relay(consumer, walk);
    }
  }
  __device__ __forceinline__ void AddUp(TurnConsumer<Shape>& consumer, UnitWalk walk) const {
    bool begun = false;
    while (!walk.done() && rows.Has(walk.pass, group)) {
      float total[Shape::kN / 2], sum[Shape::kN / 2];
#pragma unroll
      for (int i = 0; i < Shape::kN / 2; ++i) total[i] = 0.0f;
      for (bool last = false; !last; walk.Next()) {
        last = walk.last();
        consumer.Multiply(walk, begun, sum);
        begun = true;
#pragma unroll
        for (int i = 0; i < Shape::kN / 2; ++i) total[i] += sum[i];
      }
      StorePass(walk.pass - 1, total, EndOfPass(walk.pass - 1));
    }
    for (; !walk.done(); walk.Next()) consumer.PassOver(walk);
  }
  __device__ __forceinline__ void Relay(TurnConsumer<Shape>& consumer, UnitWalk walk) const {
    const TotalRelay<Shape> relay(storage, group, turn);
    for (bool begun = false; !walk.done(); walk.Next(), begun = true) {
      if (Shape::kGroups > 1 && !rows.Has(walk.pass, group)) {
        consumer.PassOver(walk);
        continue;
      }
      float sum[Shape::kN / 2];
      TileEnd end = {};
      if (walk.last()) end = EndOfPass(walk.pass);
      consumer.Multiply(walk, begun, sum);
      if (!walk.first()) relay.Receive(sum);
      if (!walk.last()) {
        if (walk.first() && walk.pass > 0) relay.AwaitPlace();
        relay.Send(sum);
        continue;
      }
      if (walk.slices > 1 && walk.pass + 1 < walk.passes && rows.Has(walk.pass + 1, group))
        relay.HandOnPlace();
      StorePass(walk.pass, sum, end);
    }
  }
};

#endif  // NIBBLE_HAVE_WGMMA

// CTAs (along rows, parts of the tokens).
template <typename Shape>
__global__ void __maxnreg__(Shape::kRegisters)
    TurnsKernel(const __grid_constant__ PrefillParams p, const __grid_constant__ TurnPlan plan) {
#ifdef NIBBLE_HAVE_WGMMA
  extern __shared__ std::byte turn_memory[];
  const TurnStorage<Shape> storage(turn_memory);
  storage.Init();
  // The shuffle tells the compiler that it is the same for the warp.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  const RowShare rows(plan, static_cast<int>(blockIdx.x));
  const TurnWork<Shape> work = {storage,
                                p,
                                rows,
                                static_cast<int>(blockIdx.y),
                                warpgroup / Shape::kTurns,
                                warpgroup % Shape::kTurns};
  work.Run({.slices = p.weight.slices(), .passes = plan.passes, .step = 1});
#endif
}

template <TileFormat kFormat, int kTokens, int kGroups>
void LaunchTurnShape(const PrefillParams& p, const TurnPlan& plan, cudaStream_t stream) {
  constexpr int kTurns = TurnsOf(kFormat, kTokens, kGroups);
  if constexpr (kTurns > 0) {
    using Shape = TurnShape<kFormat, kTokens, kGroups, kTurns>;
    LaunchPdl(TurnsKernel<Shape>, dim3(plan.row_ctas, plan.parts), dim3(Shape::kThreads),
              Shape::kAllocatedBytes, stream, p, plan);
  }
}

template <TileFormat kFormat, int kTokens>
void LaunchTurnTokens(const PrefillParams& p, const TurnPlan& plan, cudaStream_t stream) {
  if (plan.groups == 1) return LaunchTurnShape<kFormat, kTokens, 1>(p, plan, stream);
  if (plan.groups == 2) return LaunchTurnShape<kFormat, kTokens, 2>(p, plan, stream);
  LaunchTurnShape<kFormat, kTokens, 4>(p, plan, stream);
}

template <TileFormat kFormat>
void LaunchTurnFormat(const PrefillParams& p, const TurnPlan& plan, cudaStream_t stream) {
  if (plan.tokens == 16) return LaunchTurnTokens<kFormat, 16>(p, plan, stream);
  if (plan.tokens == 32) return LaunchTurnTokens<kFormat, 32>(p, plan, stream);
  LaunchTurnTokens<kFormat, 64>(p, plan, stream);
}

}  // namespace nibble::kernels::cuda
