// The kernel of decode.h.
//
// A CTA takes a contiguous share of the row tiles. Its units are (row tile, slice of 256 columns),
// or pairs of row tiles for more than 8 tokens; warp w takes units w, w + 16, ... Each warp copies
// what it will decode into a ring of its own, with cp.async, and requests the first stages before
// it waits for its predecessor: weights depend on nobody. x is read where it lies, where L1 keeps
// it for the next row tile, or is brought into shared memory first: a lane's four atoms of a k-tile
// are 32 bytes of a token's row. A unit ends as partial sums in shared memory; after some rounds
// the CTA adds them up, ascending by slice.
//
// Where x of all K is more than L1 keeps, or a CTA's part of shared memory, K is walked in chunks,
// and running sums wait in shared memory.
//
// Up to 8 tokens two CTAs share a multiprocessor (at most 64 registers, half of the shared memory),
// the second one of the next launch, or of one token's large weights of the same.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/activation/activate.cuh"
#include "kernels/cuda/linear/decode.h"
#include "kernels/cuda/linear/decode_kernels.h"
#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/norm/normalize.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "kernels/cuda/ptx/prefetch.cuh"
#include "numerics/bf16.h"

namespace nibble::kernels::cuda::decode {

// A chunk of x, or all of it, into rows of shared memory, StagedStride apart, by all threads: as it
// is, or, if all of it, normed, with the bits of rms_norm. A warp takes runs of 256 values, and asks
// for several before it waits for the first. `sums` has room for one sum per run.
struct StageX {
  static_assert(kRunValues == kSliceColumns);
  static constexpr int kAtOnce = 4;

  const DecodeArgs& args;
  const int warp;
  const int lane;
  const int first;     // run of the chunk
  const int row_runs;  // of the chunk, which are a row's
  float weight[kVector];  // of the warp's first run: depends on nobody

  __device__ __forceinline__ StageX(const DecodeArgs& a, int w, int l, int first_slice, int slices)
      : args(a),
        warp(w),
        lane(l),
        first(first_slice),
        row_runs(min(slices, (a.weight.k + kRunValues - 1) / kRunValues - first_slice)) {
    if (norms()) LoadWeight(w % row_runs);
  }
  __device__ __forceinline__ bool norms() const { return args.norm.weight != nullptr; }
  // Within the chunk.
  __device__ __forceinline__ int column(int run) const { return run * kRunValues + lane * kVector; }
  __device__ __forceinline__ int columns() const { return args.weight.k - first * kRunValues; }
  __device__ __forceinline__ int stride() const {
    return StagedStride(min(columns(), row_runs * kRunValues));
  }
  __device__ __forceinline__ void LoadWeight(int run) {
    LoadF32x8(args.norm.weight + column(run), columns() - column(run), true, weight);
  }

  __device__ __forceinline__ void Run(uint16_t* out, float* sums) {
    const int row_stride = stride();
    const int count = args.m * row_runs;
    const uint16_t* const x = args.x + first * kRunValues;
#pragma unroll 1
    for (int begin = warp; begin < count; begin += kAtOnce * kWarps) {
      uint4 vectors[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = min(begin + j * kWarps, count - 1);
        const int token = i / row_runs, at = column(i - token * row_runs);
        vectors[j] = LoadBf16x8(x + token * args.x_stride + at, columns() - at, true);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = begin + j * kWarps;
        if (i >= count) break;
        const int token = i / row_runs, at = column(i - token * row_runs);
        StoreBf16x8(out + token * row_stride + at, vectors[j], columns() - at, true);
        if (!norms()) continue;
        const float sum = WarpSum(AddSquares(vectors[j], 0.0f));
        if (lane == 0) sums[i] = sum;
      }
    }
    __syncthreads();
    if (!norms()) return;
    // Values waited where their thread norms them.
    const float inverse_d = 1.0f / static_cast<float>(args.weight.k);
    for (int i = warp; i < count; i += kWarps) {
      const int token = i / row_runs, run = i % row_runs, at = column(run);
      const float sum = WarpSum(lane < row_runs ? sums[token * row_runs + lane] : 0.0f);
      const float inverse = InverseRoot(sum, inverse_d, args.norm.eps);
      if (i != warp) LoadWeight(run);
      uint16_t* const vector = out + token * row_stride + at;
      if (at < args.weight.k)
        *reinterpret_cast<uint4*>(vector) =
            NormVector(*reinterpret_cast<const uint4*>(vector), inverse, weight, args.norm.style);
    }
    __syncthreads();
  }
};

// What a warp visits: the units of a block (row tiles times a chunk of slices), 16 apart, then the
// next block. Uniform over the warp.
template <int kRows>
struct Walk {
  int tile_end;      // of the CTA
  int slices;        // of the weight
  int group_tiles;   // row tiles of a block
  int chunk_slices;  // slices of a block
  // The block.
  int block_tile;
  int block_slice = 0;
  int width = 0;           // slices
  int block_tile_end = 0;  // row tiles
  // The unit: its row tile, its slice within the block.
  int tile = 0;
  int slice = 0;

  __device__ __forceinline__ bool done() const { return block_tile >= tile_end; }
  __device__ __forceinline__ int absolute_slice() const { return block_slice + slice; }
  // Of the block.
  __device__ __forceinline__ int units() const {
    return (block_tile_end - block_tile + kRows - 1) / kRows * width;
  }

  // To the warp's place in this block, which may hold no unit for it.
  __device__ __forceinline__ void Enter(int warp) {
    width = min(chunk_slices, slices - block_slice);
    block_tile_end = min(block_tile + group_tiles, tile_end);
    tile = block_tile;
    slice = warp;
    Carry();
  }
  __device__ __forceinline__ void NextBlock() {
    block_slice += chunk_slices;
    if (block_slice < slices) return;
    block_slice = 0;
    block_tile += group_tiles;
  }
  __device__ __forceinline__ void Carry() {
    while (slice >= width) {
      slice -= width;
      tile += kRows;
    }
  }
  // To the next unit within the block, or beyond its end.
  __device__ __forceinline__ void Step() {
    slice += kWarps;
    Carry();
  }
  // From beyond the end of a block to the first unit of a later one.
  __device__ __forceinline__ void SkipBlocks(int warp) {
    while (tile >= block_tile_end) {
      NextBlock();
      if (done()) return;
      Enter(warp);
    }
  }
};

// What depends on the instance alone.
template <TileFormat kFormat, int kTokenTiles>
struct Shape {
  static constexpr int kRows = RowTilesOfUnit(kFormat, kTokenTiles);
  static constexpr int kVectors = StageVectors(kFormat, kTokenTiles);
  static constexpr int kTiles = kVectors / VectorsPerTile(kFormat);  // of a stage
  static constexpr int kParts = kSliceTiles / kTiles;                // stages of a slice
};

// The stages of one warp.
template <TileFormat kFormat, int kTokenTiles, int kStages>
struct Ring {
  using S = Shape<kFormat, kTokenTiles>;
  std::byte* memory;
  int scale_bytes;  // of a slice
  int fill = 0;     // stage to fill next
  int read = 0;     // stage to read next
  int part = 0;     // of the slice, to fill next

  __device__ __forceinline__ int row_bytes() const { return S::kVectors * 512 + scale_bytes; }
  __device__ __forceinline__ std::byte* stage(int index) const {
    return memory + index * S::kRows * row_bytes();
  }

  // Requests the next stage of the walk, which it advances.
  __device__ __forceinline__ void Fill(const WeightTiles& weight, Walk<S::kRows>& walk, int warp,
                                       int lane) {
    if (!walk.done()) {
      const int slice = walk.absolute_slice();
      const int tiles = weight.k_tiles - slice * kSliceTiles;
      const int64_t in_row =
          static_cast<int64_t>(slice) * (kSliceTiles * CodeBytes(kFormat) + scale_bytes) +
          lane * 16;
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) {
        const int tile = r == 0 ? walk.tile : min(walk.tile + r, walk.tile_end - 1);
        const std::byte* from = weight.data + tile * weight.row_tile_bytes + in_row;
        const uint32_t to = ptx::SharedAddress(stage(fill)) + r * row_bytes() + lane * 16;
        if (tiles >= kSliceTiles) {
          Copy(from, to, kSliceTiles, lane);
        } else {
          Copy(from, to, tiles, lane);
        }
      }
      if (++part == S::kParts) {
        part = 0;
        walk.Step();
        if (walk.tile >= walk.block_tile_end) walk.SkipBlocks(warp);
      }
    }
    ptx::CommitCopies();
    fill = fill + 1 == kStages ? 0 : fill + 1;
  }

  // One row tile's stage, of a slice of `tiles` k-tiles.
  __device__ __forceinline__ void Copy(const std::byte* from, uint32_t to, int tiles,
                                       int lane) const {
    const int vectors = (tiles - part * S::kTiles) * VectorsPerTile(kFormat);
    const std::byte* codes = from + part * S::kVectors * 512;
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v)
      if (v < vectors) ptx::CopyAsync16To(to + v * 512, codes + v * 512);
    const std::byte* scales = from + tiles * CodeBytes(kFormat);
    const uint32_t scales_to = to + S::kVectors * 512;
    if constexpr (HasGroups(kFormat)) {
      for (int at = 0; at + lane * 16 < scale_bytes; at += 512)
        ptx::CopyAsync16To(scales_to + at, scales + at);
    } else if constexpr (ScaleBytes(kFormat, 256) > 0) {
      if (lane * 16 < ScaleBytes(kFormat, 256)) ptx::CopyAsync16To(scales_to, scales);
    }
  }

  // The oldest stage, when it is there. Refill only after all lanes have read it.
  __device__ __forceinline__ const std::byte* Await() {
    ptx::WaitForCopies<kStages - 1>();
    __syncwarp();
    const std::byte* oldest = stage(read);
    read = read + 1 == kStages ? 0 : read + 1;
    return oldest;
  }
};

// Where a lane reads x, in global or shared memory: columns 16 q .. 16 q + 15 of a k-tile of token
// 8 nt + g, in two halves.
template <int kTokenTiles>
struct LaneX {
  const uint16_t* base;
  int offsets[kTokenTiles];

  __device__ __forceinline__ LaneX(const uint16_t* x, int stride, int m, int lane)
      : base(x + lane % 4 * 16) {
#pragma unroll
    for (int nt = 0; nt < kTokenTiles; ++nt) offsets[nt] = min(nt * 8 + lane / 4, m - 1) * stride;
  }
  __device__ __forceinline__ uint4 At(int x_tile, int half, int nt) const {
    return reinterpret_cast<const uint4*>(base + offsets[nt] + x_tile * kTileColumns)[half];
  }
};

// Prepared x: vectors of (k-tile, half, token tile, lane).
template <int kTokenTiles>
  requires(PreparesX(kTokenTiles))
struct LaneX<kTokenTiles> {
  const uint4* base;

  __device__ __forceinline__ LaneX(const uint16_t* x, int /*stride*/, int /*m*/, int lane)
      : base(reinterpret_cast<const uint4*>(x) + lane) {}
  __device__ __forceinline__ uint4 At(int x_tile, int half, int nt) const {
    return base[((x_tile * 2 + half) * kTokenTiles + nt) * 32];
  }
};

template <int kRows, int kTokenTiles>
struct Sums {
  float values[kRows][kTokenTiles][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int nt = 0; nt < kTokenTiles; ++nt)
#pragma unroll
        for (int i = 0; i < 4; ++i) values[r][nt][i] = 0.0f;
  }

  // The atoms of a k-tile, ascending, for all row tiles and token tiles.
  __device__ __forceinline__ void Multiply(const uint32_t (&a)[kRows][4][4],
                                           const LaneX<kTokenTiles>& x, int x_tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int nt = 0; nt < kTokenTiles; ++nt) {
        const uint4 b = x.At(x_tile, half, nt);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          ptx::MmaBf16(values[r][nt], a[r][2 * half], b.x, b.y);
          ptx::MmaBf16(values[r][nt], a[r][2 * half + 1], b.z, b.w);
        }
      }
  }

  // this += scale * group, and a new group from zero. scale of row tile r.
  __device__ __forceinline__ void EndGroup(int r, GroupScales::Rows scale, Sums& group) {
#pragma unroll
    for (int nt = 0; nt < kTokenTiles; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[r][nt][i] =
            __fmaf_rn(i < 2 ? scale.low : scale.high, group.values[r][nt][i], values[r][nt][i]);
        group.values[r][nt][i] = 0.0f;
      }
  }

  // Token tiles [first, first + count) of row tile r as (token slots, 16 rows).
  template <int kCount>
  __device__ __forceinline__ void Store(int r, int first, int m, int lane, float* partial) const {
    float* const at = partial + lane / 4;
#pragma unroll
    for (int nt = 0; nt < kCount; ++nt) {
      const float(&c)[4] = values[r][first + nt];
      const int slot = nt * 8 + lane % 4 * 2;
      const int left = m - first * 8 - slot;
      if (left > 0) {
        at[slot * 16] = c[0];
        at[slot * 16 + 8] = c[2];
      }
      if (left > 1) {
        at[slot * 16 + 16] = c[1];
        at[slot * 16 + 24] = c[3];
      }
    }
  }
};

// Keeps the fragments of lanes with q / 2 == half.
__device__ __forceinline__ void KeepHalf(const uint32_t (&a)[4][4], int half, int lane,
                                         uint32_t (&kept)[4][4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int r = 0; r < 4; ++r) kept[j][r] = lane % 4 / 2 == half ? a[j][r] : 0;
}

// One unit: the slice's products from zero. Refills the ring as it goes.
template <TileFormat kFormat, int kTokenTiles, int kStages>
struct Unit {
  using S = Shape<kFormat, kTokenTiles>;
  using UnitSums = Sums<S::kRows, kTokenTiles>;
  static constexpr int kPerTile = VectorsPerTile(kFormat);
  // One row tile: codes move to registers and their stage is refilled before they are decoded.
  static constexpr bool kRefillFirst = S::kRows == 1 && !HasGroups(kFormat);

  const WeightTiles& weight;
  const LaneX<kTokenTiles>& x;
  Ring<kFormat, kTokenTiles, kStages>& ring;
  Walk<S::kRows>& loads;
  int warp;
  int lane;

  // kWhole: a slice of four k-tiles.
  template <bool kWhole>
  __device__ __forceinline__ void Multiply(int slice, int tiles, UnitSums& sums) {
    sums.Clear();
    [[maybe_unused]] UnitSums group;
    if constexpr (HasGroups(kFormat)) group.Clear();
#pragma unroll 1
    for (int part = 0; part < S::kParts; ++part) {
      const std::byte* stage = ring.Await();
      [[maybe_unused]] uint4 early[S::kVectors];
      [[maybe_unused]] const LaneScales<kFormat> early_scales(stage + S::kVectors * 512,
                                                              weight.group_columns, lane);
      if constexpr (kRefillFirst) {
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v) early[v] = Vector(stage, v);
        __syncwarp();
        ring.Fill(weight, loads, warp, lane);
      }
#pragma unroll
      for (int i = 0; i < S::kTiles; ++i) {
        const int tile = part * S::kTiles + i;
        if (!kWhole && tile >= tiles) break;
        uint32_t a[S::kRows][4][4];
#pragma unroll
        for (int r = 0; r < S::kRows; ++r) {
          uint4 codes[kPerTile];
          const std::byte* row = stage + r * ring.row_bytes();
#pragma unroll
          for (int v = 0; v < kPerTile; ++v)
            codes[v] = kRefillFirst ? early[i * kPerTile + v] : Vector(row, i * kPerTile + v);
          if constexpr (kRefillFirst) {
            early_scales.Decode(codes, tile, a[r]);
          } else {
            LaneScales<kFormat>(row + S::kVectors * 512, weight.group_columns, lane)
                .Decode(codes, tile, a[r]);
          }
        }
        int x_tile = slice * kSliceTiles + tile;
        if constexpr (kFormat == TileFormat::kBf16)
          while (x_tile >= weight.x_tiles) x_tile -= weight.x_tiles;
        if constexpr (HasGroups(kFormat)) {
          MultiplyGroups(a, stage, x_tile, tile, tile + 1 == tiles, group, sums);
        } else {
          sums.Multiply(a, x, x_tile);
        }
      }
      if constexpr (!kRefillFirst) {
        __syncwarp();
        ring.Fill(weight, loads, warp, lane);
      }
    }
  }

  __device__ __forceinline__ uint4 Vector(const std::byte* row, int index) const {
    return *reinterpret_cast<const uint4*>(row + index * 512 + lane * 16);
  }

  // A k-tile whose column groups have scales of their own.
  __device__ __forceinline__ void MultiplyGroups(const uint32_t (&a)[S::kRows][4][4],
                                                 const std::byte* stage, int x_tile, int tile,
                                                 bool last, UnitSums& group, UnitSums& sums) {
    const int columns = weight.group_columns;
    const int column = tile * kTileColumns;
    const auto end_group = [&](int at) {
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) {
        const GroupScales scales(stage + r * ring.row_bytes() + S::kVectors * 512, columns, lane);
        sums.EndGroup(r, scales.GroupScale(at), group);
      }
    };
    if (columns > 32) {
      group.Multiply(a, x, x_tile);
      if ((column + kTileColumns) % columns == 0 || last) end_group(column);
      return;
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      uint32_t kept[S::kRows][4][4];
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) KeepHalf(a[r], half, lane, kept[r]);
      group.Multiply(kept, x, x_tile);
      end_group(column + 32 * half);
    }
  }

  __device__ __forceinline__ void Run(int slice, UnitSums& sums) {
    const int tiles = weight.tiles_of(slice);
    if (tiles == kSliceTiles) {
      Multiply<true>(slice, kSliceTiles, sums);
    } else {
      Multiply<false>(slice, tiles, sums);
    }
  }
};

// The CTA's shared memory.
struct Shared {
  float* running;   // sums of row tiles that go on: (slots, all token slots, 16 rows)
  float* scales;    // row scales, then bias, of the CTA's row tiles
  float* partials;  // (units, row tiles, token slots of a reduction, 16 rows)
};

// Adds the slice sums of units [begin, end) of the block, for tokens from first_token on; writes
// finished outputs. `pass` counts reductions. kOneReduction: of all tokens at a time. kActivates: a
// thread adds a gate's and, 8 rows further on, what meets it.
template <bool kOneReduction, bool kActivates, int kRows>
__device__ __forceinline__ void Reduce(const DecodeArgs& args, const DecodePlan& plan,
                                       const Shared& shared, const Walk<kRows>& block,
                                       int first_tile, int first_token, int begin, int end,
                                       int pass) {
  const int width = block.width;
  const bool one_chunk = plan.chunk_slices >= block.slices;
  int from = 0;  // row tiles of the block
  int to = block.block_tile_end - block.block_tile;
  if (end - begin < block.units()) {
    from = begin / width * kRows;
    to = min(to, ((end - 1) / width + 1) * kRows);
  }
  constexpr int kSums = kActivates ? 2 : 1;  // of a thread
  constexpr int kOutputs = kTileRows / kSums;
  const int values = kTileRows << plan.slot_shift;  // of a row tile
  const int shift = (kActivates ? 3 : 4) + plan.slot_shift;
  const int total = (to - from) << shift;
  for (int i = static_cast<int>(threadIdx.x); i < total; i += kThreads) {
    const int output = i & ((1 << shift) - 1);
    const int value = output / kOutputs * kTileRows + output % kOutputs;
    const int token = first_token + (value >> 4);
    if (token >= args.m) continue;
    const int in_block = from + (i >> shift);
    const int row_of_units = in_block / kRows;
    const int unit_begin = max(begin, row_of_units * width);
    const int unit_end = min(end, (row_of_units + 1) * width);
    const int first_slice = block.block_slice + unit_begin - row_of_units * width;
    const int last_slice = block.block_slice + unit_end - row_of_units * width;
    // A lone chunk has at most one row tile open from one reduction to the next.
    const int run = token * 16 + value % 16;
    const int slot_values = kOneReduction ? values : 16 * ((args.m + 7) / 8 * 8);
    const int read_slot = one_chunk && kOneReduction ? (pass + 1) % 2 : in_block;
    const int write_slot = one_chunk && kOneReduction ? pass % 2 : in_block;
    float sums[kSums] = {};
    if (first_slice > 0)
#pragma unroll
      for (int s = 0; s < kSums; ++s)
        sums[s] = shared.running[read_slot * slot_values + run + s * kPairedRows];
    const float* partial =
        shared.partials + ((unit_begin - begin) * kRows + in_block % kRows) * values + value;
#pragma unroll 8 / kSums
    for (int unit = unit_begin; unit < unit_end; ++unit, partial += kRows * values)
#pragma unroll
      for (int s = 0; s < kSums; ++s) sums[s] += partial[s * kPairedRows];
    if (last_slice < block.slices) {
#pragma unroll
      for (int s = 0; s < kSums; ++s)
        shared.running[write_slot * slot_values + run + s * kPairedRows] = sums[s];
      continue;
    }
    const int row = (block.block_tile + in_block) * kTileRows + value % 16;
    if (row >= args.weight.n) continue;
    const auto result_of = [&](int s) {
      const int local = row - first_tile * kTileRows + s * kPairedRows;
      float result = sums[s] * shared.scales[local];
      if (args.bias != nullptr)
        result += shared.scales[(block.tile_end - first_tile) * kTileRows + local];
      return result;
    };
    const float result = result_of(0);
    if constexpr (kActivates) {
      const float activated =
          Activate(args.activation, ptx::RoundBf16(result), ptx::RoundBf16(result_of(1)));
      args.y[token * args.y_stride + PairedOutput(row)] =
          static_cast<uint16_t>(ptx::PackBf16(activated, 0.0f));
      continue;
    }
    const int64_t at = token * args.y_stride + row;
    if (args.y != nullptr) {
      const uint16_t rounded = Bf16FromFloat(result);
      args.y[at] =
          args.add ? Bf16FromFloat(Bf16ToFloat(args.y[at]) + Bf16ToFloat(rounded)) : rounded;
    } else {
      args.y_f32[at] = result;
    }
  }
}

// What the CTA's outputs are added to, into L1: it is read when the sums are finished.
__device__ __forceinline__ void RequestRows(const DecodeArgs& args, int first_tile, int tile_end) {
  const int tiles = tile_end - first_tile;
  for (int i = static_cast<int>(threadIdx.x); i < args.m * tiles; i += kThreads) {
    const int token = i / tiles, tile = first_tile + i - token * tiles;
    ptx::PrefetchL1(args.y + token * args.y_stride + tile * kTileRows);
  }
}

template <TileFormat kFormat, int kTokenTiles, int kStages, bool kStaged, bool kMayActivate>
__device__ __forceinline__ void Decode(const DecodeArgs& args, const DecodePlan& plan) {
  extern __shared__ uint4 memory[];
  constexpr int kRows = RowTilesOfUnit(kFormat, kTokenTiles);
  const WeightTiles& weight = args.weight;
  // The same for all lanes: uniform registers can hold it.
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int block = static_cast<int>(blockIdx.x);
  const int first_tile = block * plan.share + min(block, plan.larger);
  const int tile_end = first_tile + plan.share + (block < plan.larger ? 1 : 0);

  const int scale_bytes = ScaleBytes(kFormat, weight.group_columns);
  const int ring_bytes = kStages * RowTilesOfUnit(kFormat, kTokenTiles) *
                         (StageVectors(kFormat, kTokenTiles) * 512 + scale_bytes);  // of a warp
  auto* at = reinterpret_cast<std::byte*>(memory);
  Ring<kFormat, kTokenTiles, kStages> ring = {at + warp * ring_bytes, scale_bytes};
  at += kWarps * ring_bytes;
  [[maybe_unused]] auto* const staged = reinterpret_cast<uint16_t*>(at);
  at += plan.x_bytes;
  Shared shared;
  shared.running = reinterpret_cast<float*>(at);
  shared.scales = reinterpret_cast<float*>(at + plan.run_bytes);
  shared.partials = reinterpret_cast<float*>(at + plan.run_bytes + plan.scale_bytes);

  Walk<kRows> walk = {tile_end, weight.slices(), plan.group_tiles, plan.chunk_slices, first_tile};
  Walk<kRows> loads = walk;
  loads.Enter(warp);
  loads.SkipBlocks(warp);
#pragma unroll
  for (int i = 0; i < kStages; ++i) ring.Fill(weight, loads, warp, lane);
  ptx::LaunchSuccessor();
  const int rows = (tile_end - first_tile) * kTileRows;
  for (int i = static_cast<int>(threadIdx.x); i < rows; i += kThreads) {
    const int row = first_tile * kTileRows + i;
    shared.scales[i] = weight.row_scales[row];
    if (args.bias != nullptr) {
      const int stacked = kMayActivate && args.activates ? PairedStackRow(row, weight.n / 2) : row;
      shared.scales[rows + i] = row < weight.n ? args.bias[stacked] : 0.0f;
    }
  }
  const uint16_t* x_rows = args.x;
  int x_stride = static_cast<int>(args.x_stride);
  if constexpr (kStaged) {
    StageX stage(args, warp, lane, 0, plan.chunk_slices);
    ptx::WaitForPredecessor();
    stage.Run(staged, shared.partials);
    x_rows = staged;
    x_stride = stage.stride();
  } else {
    ptx::WaitForPredecessor();
  }
  if constexpr (kTokenTiles == 1)
    if (args.add) RequestRows(args, first_tile, tile_end);

  LaneX<kTokenTiles> x(x_rows, x_stride, args.m, lane);
  [[maybe_unused]] int staged_slice = 0;  // where the chunk of x begins
  Unit<kFormat, kTokenTiles, kStages> multiply = {weight, x, ring, loads, warp, lane};
  const auto reduce = [&]<bool kOneReduction>(const Walk<kRows>& at_block, int first_token,
                                              int begin, int end, int pass) {
    if (kMayActivate && args.activates) {
      Reduce<kOneReduction, true>(args, plan, shared, at_block, first_tile, first_token, begin, end,
                                  pass);
    } else {
      Reduce<kOneReduction, false>(args, plan, shared, at_block, first_tile, first_token, begin,
                                   end, pass);
    }
  };
  int pass = 0;
  for (; !walk.done(); walk.NextBlock()) {
    if constexpr (kStaged) {
      if (walk.block_slice != staged_slice) {
        __syncthreads();  // the chunk before has been read
        StageX(args, warp, lane, walk.block_slice, plan.chunk_slices).Run(staged, shared.partials);
        x.base -= (walk.block_slice - staged_slice) * kSliceColumns;
        staged_slice = walk.block_slice;
      }
    }
    walk.Enter(warp);
    const int units = walk.units();
    for (int begin = 0; begin < units; begin += plan.partial_units) {
      const int end = min(units, begin + plan.partial_units);
      Sums<kRows, kTokenTiles> sums;
      if constexpr (kTokenTiles == 1) {
        if (pass > 0) __syncthreads();  // the partials have been added up
        for (int unit = begin + warp; unit < end; unit += kWarps) {
          multiply.Run(walk.absolute_slice(), sums);
          sums.template Store<1>(0, 0, args.m, lane,
                                 shared.partials + ((unit - begin) << (4 + plan.slot_shift)));
          walk.Step();
        }
        __syncthreads();
        reduce.template operator()<true>(walk, 0, begin, end, pass);
        ++pass;
      } else {
        constexpr int kReduced = ReducedTokenTiles(kTokenTiles);
        const int unit = begin + warp;
        if (unit < end) multiply.Run(walk.absolute_slice(), sums);
        walk.Step();
#pragma unroll
        for (int first = 0; first < kTokenTiles; first += kReduced) {
          if (first * 8 >= args.m) break;
          if (pass > 0) __syncthreads();
          if (unit < end)
#pragma unroll
            for (int r = 0; r < kRows; ++r)
              sums.template Store<kReduced>(
                  r, first, args.m, lane,
                  shared.partials + ((warp * kRows + r) << (4 + plan.slot_shift)));
          __syncthreads();
          reduce.template operator()<false>(walk, first * 8, begin, end, pass);
          ++pass;
        }
      }
    }
  }
}

constexpr int CtasOfMultiprocessor(int token_tiles) { return token_tiles == 1 ? 2 : 1; }

template <TileFormat kFormat, int kTokenTiles, int kStages, bool kStaged = false>
__global__ __launch_bounds__(kThreads, CtasOfMultiprocessor(kTokenTiles)) void DecodeKernel(
    const DecodeArgs args, const DecodePlan plan) {
  Decode<kFormat, kTokenTiles, kStages, kStaged, true>(args, plan);
}

// CTAs (of a head, heads, blocks of tokens).
template <TileFormat kFormat, int kTokenTiles, int kStages>
__global__ __launch_bounds__(kThreads, CtasOfMultiprocessor(kTokenTiles)) void HeadDecodeKernel(
    const HeadDecodeArgs args, const DecodePlan plan) {
  __shared__ DecodeArgs mine;
  if (threadIdx.x == 0) {
    const int head = static_cast<int>(blockIdx.y);
    const int first_token = static_cast<int>(blockIdx.z) * kTokenTiles * 8;
    DecodeArgs a = args.each;
    a.weight = args.heads[head];
    a.x += head * args.x_head_stride + first_token * a.x_stride;
    a.y += head * args.y_head_stride + first_token * a.y_stride;
    a.m = min(a.m - first_token, kTokenTiles * 8);
    mine = a;
  }
  __syncthreads();
  Decode<kFormat, kTokenTiles, kStages, false, false>(mine, plan);
}

// Null for what has no instance.
template <TileFormat kFormat>
const void* KernelOf(int token_tiles, int stages, Input input) {
  const bool heads = input == Input::kOfHeads;
  if (input == Input::kStaged) {
    if (token_tiles != 1) return nullptr;
    return stages == 1 ? reinterpret_cast<const void*>(&DecodeKernel<kFormat, 1, 1, true>)
                       : reinterpret_cast<const void*>(&DecodeKernel<kFormat, 1, 2, true>);
  }
  switch (token_tiles * 8 + stages) {
    case 8 + 1:
      return heads ? reinterpret_cast<const void*>(&HeadDecodeKernel<kFormat, 1, 1>)
                   : reinterpret_cast<const void*>(&DecodeKernel<kFormat, 1, 1>);
    case 8 + 2:
      return heads ? nullptr : reinterpret_cast<const void*>(&DecodeKernel<kFormat, 1, 2>);
    case 16 + 2:
      return heads ? reinterpret_cast<const void*>(&HeadDecodeKernel<kFormat, 2, 2>)
                   : reinterpret_cast<const void*>(&DecodeKernel<kFormat, 2, 2>);
    case 32 + 2:
      return heads ? nullptr : reinterpret_cast<const void*>(&DecodeKernel<kFormat, 4, 2>);
    case 64 + 2:
      return heads ? nullptr : reinterpret_cast<const void*>(&DecodeKernel<kFormat, 8, 2>);
    default:
      return nullptr;
  }
}

}  // namespace nibble::kernels::cuda::decode
