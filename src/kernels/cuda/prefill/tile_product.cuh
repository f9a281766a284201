// Tiles of y = x Wᵀ for Hopper, over all of K, by wgmma with the weights as A in registers and the
// tokens as B in shared memory. A kernel is RunTiles over a Problem, which says which tiles there
// are:
//
//   int count() const; TileWork At(int index) const;   // the tiles
//   WeightTiles like() const;                          // sizes of every tile's weight
//   TileOutput output() const;                         // or DenseOutput
//   static constexpr bool kGathers;
//
// Gathered tokens are rows() of row_bytes(), token i at row_of(i); others are prepared, tokens().
//
// CTAs stay and take every gridDim-th tile. Their warpgroups of 128 threads: a producer keeps a
// ring of k-tiles of tokens full, and stores outputs of the tile before (tile_producers.cuh).
// Consumers own 64 rows and kN tokens each. Their warps own a row tile, whose codes and scales they
// copy themselves into a ring of their own (cp.async; bulk copies of 512 bytes would be too many),
// and decode the next step into one set of A fragments while the tensor cores multiply by the
// other. The accumulators: tile_sums.cuh.
//
// Decoding takes power and issue slots that do not depend on the tokens: with 176 of them instead
// of 128 the tensor cores multiply by a tenth faster. Clusters that share tokens by multicast
// change nothing, so that their way from L2 is no bound.
#pragma once

#include <algorithm>

#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/prefill/tile_output.cuh"
#include "kernels/cuda/prefill/tile_producers.cuh"
#include "kernels/cuda/prefill/tile_storage.cuh"
#include "kernels/cuda/prefill/tile_sums.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace nibble::kernels::cuda {

// kRowParts x kTokenParts consumers.
template <TileFormat kTileFormat, int kRowParts, int kTokenParts, int kWarpgroupTokens>
struct TileShape {
  static constexpr TileFormat kFormat = kTileFormat;
  static constexpr int kN = kWarpgroupTokens;
  static constexpr int kParts = kRowParts;
  static constexpr int kConsumers = kRowParts * kTokenParts;
  static_assert(kConsumers == 2 || kConsumers == 3);
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupThreads;
  static constexpr int kRows = kRowParts * kWarpgroupRows;
  static constexpr int kRowTiles = kRows / kTileRows;
  static constexpr int kTokens = kTokenParts * kN;

  // A warp's ring of weights is of whole slices, kWeightSlices: the four k-tiles of one always take
  // the same places, so that addresses are constants. The CTA's ring of tokens has as many k-tiles
  // as there is room for, up to two slices; half a slice keeps its order, and is what the two
  // warpgroups are apart.
  // Scales of column groups are read until their slice has ended, when the next one's first codes
  // have been: they have one place more.
  static constexpr bool kGroups = HasGroups(kFormat);
  static constexpr int kCodeBytes = CodeBytes(kFormat);
  static constexpr int kScaleBytes =  // of a slice, at most
      ScaleBytes(kFormat, kGroups ? kTileColumns : kSliceColumns);
  static constexpr int kWeightSlices = kCodeBytes > 512 ? 1 : 2;
  static constexpr int kScaleSlots = kWeightSlices + (kGroups ? 1 : 0);
  static constexpr int kWeightTiles = kWeightSlices * kSliceTiles;
  static constexpr int kWarpBytes = kWeightTiles * kCodeBytes + kScaleSlots * kScaleBytes;
  static constexpr int kWeightBytes = kConsumers * 4 * kWarpBytes;

  static constexpr int kStageBytes = kTokens * kTileColumns * 2;  // tokens of a k-tile
  static constexpr int kStagingBytes = kN * kWarpgroupRows * 2;
  static constexpr int kOutputBytes = kConsumers * kStagingBytes;

  static constexpr int kMostBytes = 227 * 1024;
  static constexpr int BytesOf(int stages) {
    return 1024 /* alignment */ + stages * kStageBytes + kWeightBytes + kOutputBytes +
           RowTilesBytes(kConsumers) + 2 * stages * 8;
  }
  static constexpr int kStages = BytesOf(8) <= kMostBytes ? 8 : BytesOf(6) <= kMostBytes ? 6 : 4;
  static constexpr int kAllocatedBytes = BytesOf(kStages);
  static_assert(kAllocatedBytes <= kMostBytes);
  // Behind these, for tokens that are laid out (lay_out.cuh), rows on their way: none without room.
  static constexpr int kRawRows =
      std::min((kMostBytes - kAllocatedBytes) / kRawRowBytes / 8 * 8, 16);
  static constexpr int kRawBytes = kRawRows * kRawRowBytes;

  // Atoms that are decoded while the tensor cores are at as many.
  static constexpr int kStepAtoms = kN > 128 ? 2 : 4;

  // Whether the consumers are kept half a slice apart.
  static constexpr bool kTurns = kConsumers == 2 && !kGroups;

  // What setmaxnreg hands out of an SM's 64 K registers.
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 56;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 152;

  // Values of a thread's totals that wait where the outputs will be staged.
  static constexpr int kStagedTotals = kGroups && (kN == 128 || kConsumers == 3) ? kN / 4 : 0;
};

#ifdef NIBBLE_HAVE_WGMMA

// A warp's own weights: slices of a row tile, then of the next work's. Every k-tile that is read is
// replaced by the one kWeightTiles later. Where the row tiles of works start is announced ahead, so
// that finding out costs neither time nor registers between MMAs.
template <typename Shape>
struct WeightRing {
  // Works that are entered at most ahead of the one that is multiplied: those of the ring's slices,
  // and the one to fill next.
  static constexpr int kAhead = Shape::kWeightSlices + 1;

  const int k_tiles;
  const int scale_bytes;  // of a slice
  std::byte* const ring;
  const std::byte** const row_tiles;  // of works, by number modulo kKnownWorks
  // The slice to fill, from the lane's bytes on.
  const std::byte* from;
  int left;  // k-tiles of the row tile from it on; 0: there is none
  int work = 0;
  int slot = 0;        // to fill and to read
  int scale_slot = 0;  // to fill

  __device__ __forceinline__ WeightRing(const TileStorage<Shape>& storage, const WeightTiles& like)
      : k_tiles(like.k_tiles),
        scale_bytes(Shape::kGroups ? ScaleBytes(Shape::kFormat, like.group_columns)
                                   : Shape::kScaleBytes),
        ring(storage.weights + threadIdx.x / 32 * Shape::kWarpBytes),
        row_tiles(storage.row_tiles + threadIdx.x / 32 * kKnownWorks) {}

  // The warp's row tile of a work, null behind the last. Before work w is multiplied, those up to
  // w + kAhead; before Start the first kAhead.
  __device__ __forceinline__ void Announce(int number, const std::byte* row_tile) const {
    if (threadIdx.x % 32 == 0) row_tiles[number % kKnownWorks] = row_tile;
    __syncwarp();
  }
  __device__ __forceinline__ void Start() {
    Enter();
    for (int i = 0; i < Shape::kWeightSlices; ++i) {
#pragma unroll
      for (int u = 0; u < kSliceTiles; ++u) Fill(u);
      NextSlice();
    }
  }

  __device__ __forceinline__ void Enter() {
    from = row_tiles[work % kKnownWorks];
    left = from == nullptr ? 0 : k_tiles;
    from += threadIdx.x % 32 * 16;
  }
  __device__ __forceinline__ std::byte* codes(int u) const {
    return ring + (slot * kSliceTiles + u) * Shape::kCodeBytes;
  }
  __device__ __forceinline__ std::byte* scales_at(int index) const {
    return ring + Shape::kWeightTiles * Shape::kCodeBytes + index * Shape::kScaleBytes;
  }
  __device__ __forceinline__ const std::byte* scales() const {
    if constexpr (!Shape::kGroups) return scales_at(slot);
    return scales_at(scale_slot + 1 == Shape::kScaleSlots ? 0 : scale_slot + 1);
  }

  // Before k-tile u of the slot is read.
  __device__ __forceinline__ void Wait() const {
    ptx::WaitForCopies<Shape::kWeightTiles - 1>();
    __syncwarp();
  }
  // After that.
  __device__ __forceinline__ void Fill(int u) const {
    const int lane_bytes = threadIdx.x % 32 * 16;
    if (u < left) {
#pragma unroll
      for (int v = 0; v < Shape::kCodeBytes / 512; ++v)
        ptx::CopyAsync16(codes(u) + lane_bytes + v * 512, from + u * Shape::kCodeBytes + v * 512);
    }
    if (Shape::kScaleBytes > 0 && u == 0 && left > 0 && lane_bytes < scale_bytes) {
      ptx::CopyAsync16(scales_at(Shape::kGroups ? scale_slot : slot) + lane_bytes,
                       from + min(kSliceTiles, left) * Shape::kCodeBytes);
    }
    ptx::CommitCopies();
  }
  // After the fourth.
  __device__ __forceinline__ void NextSlice() {
    if (Shape::kWeightSlices > 1) slot ^= 1;
    if (Shape::kGroups && ++scale_slot == Shape::kScaleSlots) scale_slot = 0;
    from += kSliceTiles * Shape::kCodeBytes + scale_bytes;
    left -= kSliceTiles;
    if (left <= 0 && left > -kSliceTiles) {  // and not: none since a while
      ++work;
      Enter();
    }
  }
};

// The row tiles of a warp in the CTA's works. Past the weight's end whatever is there: it is not
// stored.
// References, as copies make ptxas schedule the kernels otherwise.
template <typename Problem>
struct RowTilesOfWorks {
  const Problem& problem;
  const WeightTiles& like;
  const int& count;
  const int& part;  // of the warpgroup
  const int& warp;

  // Null behind the last work.
  __device__ __forceinline__ const std::byte* Of(int turn) const {
    constexpr int kTilesOfPart = kWarpgroupRows / kTileRows;
    const int index = static_cast<int>(blockIdx.x + turn * gridDim.x);
    if (index >= count) return nullptr;
    const TileWork work = problem.At(index);
    const int tile = work.row_tile + part * kTilesOfPart + warp;
    return work.weight + min(tile, like.row_tiles - 1) * like.row_tile_bytes;
  }
};

// A consumer warpgroup.
template <typename Shape>
struct TileConsumer {
  static constexpr int kN = Shape::kN;
  static constexpr int kVectors = Shape::kCodeBytes / 512;
  static constexpr int kAtoms = Shape::kStepAtoms;
  static constexpr int kSteps = 4 / kAtoms;  // of a k-tile
  using Scales = LaneScales<Shape::kFormat>;
  using Fragments = uint32_t[kAtoms][4];

  const TileStorage<Shape>& storage;
  WeightRing<Shape>& weights;
  const uint64_t tokens;    // descriptor of the part's tokens in stage 0
  const int group_columns;  // kSliceColumns where there are no groups
  const int turn_barrier;
  RingPosition<Shape::kStages> at;
  uint4 codes[kVectors];  // of the k-tile that is being decoded

  __device__ __forceinline__ TileConsumer(const TileStorage<Shape>& s, WeightRing<Shape>& w,
                                          int warpgroup, int token_part, const WeightTiles& like)
      : storage(s),
        weights(w),
        tokens(ptx::WgmmaDescriptor(s.stages + token_part * (kN * kTileColumns * 2))),
        group_columns(Shape::kGroups ? like.group_columns : kSliceColumns),
        turn_barrier(kTurnBarrier + warpgroup) {
    if (Shape::kTurns && warpgroup == 1) PassTurn();  // the first is the other's
  }

  static constexpr int kTurnBarrier = 4;  // and 5

  // The two warpgroups are kept half a slice apart, so that one multiplies while the other adds its
  // slice's sum.
  __device__ __forceinline__ void WaitForTurn() const {
    ptx::SyncThreads(turn_barrier, 2 * kWarpgroupThreads);
  }
  __device__ __forceinline__ void PassTurn() const {
    ptx::ArriveThreads(turn_barrier ^ 1, 2 * kWarpgroupThreads);
  }

  __device__ __forceinline__ void Release(int stage) const {
    if (threadIdx.x % 32 == 0) ptx::BarrierArrive(storage.free + stage);
  }

  // The lane's codes of k-tile u of the slice that `weights` is at.
  __device__ __forceinline__ void LoadCodes(int u) {
    const auto* lane = reinterpret_cast<const uint4*>(weights.codes(u)) + threadIdx.x % 32;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) codes[v] = lane[32 * v];
    weights.Fill(u);
    if (u == kSliceTiles - 1) weights.NextSlice();
  }
  // The A fragments of a step of k-tile u, whose codes are loaded.
  __device__ __forceinline__ void Decode(const Scales& scales, int u, int step,
                                         Fragments& a) const {
    uint32_t all[4][4];
    scales.Decode(codes, u, all);
#pragma unroll
    for (int j = 0; j < kAtoms; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[j][i] = all[step * kAtoms + j][i];
  }
  __device__ __forceinline__ Scales NextScales() const {
    weights.Wait();
    return Scales(weights.scales(), group_columns, threadIdx.x % 32);
  }

  // The fragments of the first step of the slice that `weights` is at.
  __device__ __forceinline__ Scales First(Fragments& a) {
    const Scales scales = NextScales();
    LoadCodes(0);
    Decode(scales, 0, 0, a);
    return scales;
  }

  // One slice, all of its four k-tiles there or only `tiles`. a[0] holds its first step's
  // fragments, and the next slice's in the end, if there is one, perhaps of another tile. A chain
  // of MMAs ends with the slice, and with each group of columns.
  template <bool kWhole>
  __device__ __forceinline__ void AddSlice(int tiles, bool next, Scales& scales, Fragments (&a)[2],
                                           TileSums<Shape>& sums) {
    // Of the slice's halves.
    const int first = at.slot;
    const uint32_t first_phase = at.phase;
    at.Advance(2);
    const int second = at.slot;
    const uint32_t second_phase = at.phase;
    at.Advance(2);
    const auto stage = [&](int u) { return (u < 2 ? first : second) + u % 2; };
    const auto phase = [&](int u) { return u < 2 ? first_phase : second_phase; };
    const auto test = [&](int u) { return ptx::BarrierTest(storage.full + stage(u), phase(u)); };
    if constexpr (Shape::kTurns) {
      WaitForTurn();
      if (!kWhole) PassTurn();
    }
    bool ready = test(0);
    bool in_chain = false;
#pragma unroll
    for (int i = 0; i < kSliceTiles * kSteps; ++i) {
      const int u = i / kSteps, step = i % kSteps;
      const bool tile_ends = step == kSteps - 1;
      if (step == 0 && !ready) ptx::BarrierWait(storage.full + stage(u), phase(u));
      if (!kWhole && u >= tiles) {
        // An empty stage; places of weights that are filled all the same.
        if (!tile_ends) continue;
        if (u + 1 < kSliceTiles) ready = test(u + 1);
        Release(stage(u));
        weights.Wait();
        weights.Fill(u);
        if (u == kSliceTiles - 1) weights.NextSlice();
        continue;
      }
      ptx::WgmmaFence();
#pragma unroll
      for (int j = 0; j < kAtoms; ++j)
        ptx::WgmmaBf16<kN>(sums.chain, a[i % 2][j],
                           ptx::WgmmaDescriptorAt(
                               tokens, stage(u) * Shape::kStageBytes + 32 * (step * kAtoms + j)),
                           in_chain || j > 0);
      ptx::WgmmaCommit();
      if (Shape::kTurns && kWhole && u == 1 && tile_ends) PassTurn();
      if (tile_ends && u + 1 < kSliceTiles) ready = test(u + 1);
      if (i > 0) {
        ptx::WgmmaWait<1>();
        if (step == 0) Release(stage(u - 1));
      }
      const bool slice_ends =
          tile_ends && (kWhole ? u == kSliceTiles - 1 : Shape::kGroups && u + 1 == tiles);
      in_chain = !slice_ends;
      [[maybe_unused]] GroupScales::Rows scale;
      if constexpr (Shape::kGroups) {
        scale = scales.GroupScale(u * kTileColumns);
        // Groups have powers of two of columns.
        if (tile_ends && ((u + 1) * kTileColumns & (group_columns - 1)) == 0) in_chain = false;
      }
      if (!tile_ends) {
        Decode(scales, u, step + 1, a[(i + 1) % 2]);
      } else if (u + 1 < kSliceTiles && (kWhole || u + 1 < tiles)) {
        weights.Wait();
        LoadCodes(u + 1);
        Decode(scales, u + 1, 0, a[(i + 1) % 2]);
      } else if (kWhole && next) {  // a branch, which keeps it before the wait
        scales = First(a[0]);
      }
      if (!in_chain) {
        ptx::WgmmaWait<0>();
        ptx::WgmmaPin(sums.chain);
        if (kWhole && slice_ends) ptx::WgmmaPin(a[i % 2]);  // First stands behind a branch
        if (slice_ends) Release(stage(u));
        if constexpr (Shape::kGroups) sums.EndGroup(scale);
        if (slice_ends) sums.EndSlice();
      }
    }
    if (!kWhole) {  // waits behind branches would not be seen by the compiler
      ptx::WgmmaWait<0>();
      ptx::WgmmaPin(sums.chain);
      if (!Shape::kGroups) {
        Release(stage(tiles - 1));
        sums.EndSlice();
      }
      if (next) scales = First(a[0]);
    }
  }

  // A tile. `last`: of the CTA.
  __device__ __forceinline__ void Run(int k_tiles, bool last, Scales& scales, Fragments (&a)[2],
                                      TileSums<Shape>& sums) {
    int left = k_tiles;
    for (; left >= kSliceTiles; left -= kSliceTiles)
      AddSlice<true>(kSliceTiles, left > kSliceTiles || !last, scales, a, sums);
    if (left > 0) AddSlice<false>(left, !last, scales, a, sums);
  }
};

// ---- The kernel

template <typename Shape, typename Problem>
__device__ __forceinline__ void Produce(const TileStorage<Shape>& storage, const Problem& problem) {
  const int k_tiles = problem.like().k_tiles;
  const int count = problem.count();
  if constexpr (Problem::kGathers) {
    GatherProducer<Shape> producer{storage};
    for (int i = blockIdx.x; i < count; i += gridDim.x)
      producer.Run(problem, problem.At(i), k_tiles);
    producer.Finish();
  } else {
    // The shuffle tells the compiler that it is the same for the warp.
    const int warp = __shfl_sync(~0u, threadIdx.x % kWarpgroupThreads / 32, 0);
    if (warp > Shape::kConsumers) {
      if constexpr (Shape::kRawRows > 0)
        LayOut<Shape::kRawRows>(problem.tokens(), storage.raw_tokens, blockIdx.x, gridDim.x);
      return;
    }
    if (warp > 0) {
      StoreTiles<Shape>(storage, problem, warp - 1);
      return;
    }
    TokenProducer<Shape> producer{storage};
    for (int i = blockIdx.x; i < count; i += gridDim.x)
      producer.Run(problem.tokens(), problem.At(i), k_tiles);
  }
}

template <typename Shape, typename Problem>
__device__ __forceinline__ void Consume(const TileStorage<Shape>& storage, const Problem& problem) {
  // The shuffle tells the compiler that it is the same for the warp.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  const int row_part = warpgroup % Shape::kParts;
  const int token_part = warpgroup / Shape::kParts;
  const int warp = threadIdx.x % kWarpgroupThreads / 32;
  const WeightTiles& like = problem.like();
  const int count = problem.count();
  const RowTilesOfWorks<Problem> row_tiles{problem, like, count, row_part, warp};
  WeightRing<Shape> weights(storage, like);
  int turn = 0;
  for (; turn < weights.kAhead; ++turn) weights.Announce(turn, row_tiles.Of(turn));
  weights.Start();
  TileConsumer<Shape> consumer(storage, weights, warpgroup, token_part, like);
  const auto& out = problem.output();
  std::byte* const staging = storage.outputs + warpgroup * Shape::kStagingBytes;
  // Whether another warp stores what is staged (StoreTiles), but for the CTA's last tile, where
  // nobody has anything else to do.
  const bool hands_over = !Problem::kGathers && out.y_f32 == nullptr;
  typename TileConsumer<Shape>::Fragments a[2];
  auto scales = consumer.First(a[0]);
  for (int i = blockIdx.x; i < count; i += gridDim.x) {
    weights.Announce(turn, row_tiles.Of(turn));
    ++turn;
    const TileEnd end = EndOf<Shape::kN>(problem.At(i), out, row_part, token_part);
    if (Shape::kStagedTotals > 0 && hands_over)
      ptx::SyncThreads(kStoredBarrier + warpgroup, kHandOverThreads);
    TileSums<Shape> sums(staging);
    const bool last = i + static_cast<int>(gridDim.x) >= count;
    consumer.Run(like.k_tiles, last, scales, a, sums);
    sums.Finish(warpgroup + 1);
    if (Shape::kStagedTotals == 0 && hands_over)
      ptx::SyncThreads(kStoredBarrier + warpgroup, kHandOverThreads);
    if (hands_over && !last) {
      Stage<Shape::kN>(sums.total, end, staging);
      ptx::ArriveThreads(kStagedBarrier + warpgroup, kHandOverThreads);
    } else {
      Store<Shape::kN, Problem::kGathers>(out, sums.total, end, staging, warpgroup + 1);
    }
  }
}

#endif  // NIBBLE_HAVE_WGMMA

template <typename Shape, typename Problem>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    TilesKernel(const __grid_constant__ Problem problem) {
#ifdef NIBBLE_HAVE_WGMMA
  extern __shared__ std::byte tile_memory[];
  const TileStorage<Shape> storage(tile_memory);
  storage.Init(Problem::kGathers ? kWarpgroupThreads : 1);
  // Which gathered tiles there are is known behind the predecessor. Others begin with weights, and
  // consumers touch nothing else before the tokens have come.
  if (Problem::kGathers) ptx::WaitForPredecessor();
  if (threadIdx.x / kWarpgroupThreads == Shape::kConsumers) {
    ptx::GiveRegisters<Shape::kProducerRegisters>();
    ptx::WaitForPredecessor();
    ptx::LaunchSuccessor();
    Produce<Shape>(storage, problem);
  } else {
    ptx::TakeRegisters<Shape::kConsumerRegisters>();
    Consume<Shape>(storage, problem);
  }
#endif
}

}  // namespace nibble::kernels::cuda
