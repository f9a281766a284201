// The kernel of decode.h.
//
// A CTA takes a contiguous share of the row tiles. Its units are (row tile, slice of 256 columns),
// row tile by row tile; warp w takes units w, w + 16, ... Each lane copies the bytes that it will
// decode itself into a ring of stages, with cp.async, and the first stages are requested before the
// kernel waits for its predecessor: weights depend on nobody. A unit ends as 16 x M partial sums in
// shared memory; after some rounds the CTA adds them up, ascending by slice.
//
// x lies in shared memory in the order in which lanes read it: for every k-tile and half h of a
// lane's 16 columns, (token, q) vectors of 16 bytes. Where x of all K does not fit, K is walked in
// chunks, and the running sums wait in shared memory.
//
// Two CTAs share a multiprocessor (at most 64 registers, half of the shared memory), the second
// one of the next launch.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/linear/decode.h"
#include "kernels/cuda/linear/decode_kernels.h"
#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/pdl.cuh"
#include "numerics/bf16.h"

namespace nibble::kernels::cuda::decode {

constexpr int VectorsPerTile(TileFormat format) { return CodeBytes(format) / 512; }
constexpr int TilesPerStage(TileFormat format) { return kStageVectors / VectorsPerTile(format); }
constexpr int StagesPerSlice(TileFormat format) { return kSliceTiles / TilesPerStage(format); }
// What a warp visits: all units of a block (row tiles times a chunk of slices), 16 apart, then the
// next block. Uniform over the warp.
struct Walk {
  int tile_end;      // of the CTA
  int slices;        // of the weight
  int group_tiles;   // row tiles of a block
  int chunk_slices;  // slices of a block
  // The block.
  int block_tile = 0;
  int block_slice = 0;
  // The unit; tile >= block_tile_end(): none left in this block.
  int tile = 0;
  int slice = 0;

  __device__ __forceinline__ int block_tile_end() const {
    return min(block_tile + group_tiles, tile_end);
  }
  __device__ __forceinline__ int block_width() const {
    return min(chunk_slices, slices - block_slice);
  }
  __device__ __forceinline__ bool done() const { return block_tile >= tile_end; }

  __device__ __forceinline__ void Enter(int warp) {
    tile = block_tile;
    slice = warp;
    Carry();
  }
  __device__ __forceinline__ void Carry() {
    const int width = block_width();
    while (slice >= width) {
      slice -= width;
      ++tile;
    }
  }
  __device__ __forceinline__ void NextBlock() {
    block_slice += chunk_slices;
    if (block_slice < slices) return;
    block_slice = 0;
    block_tile += group_tiles;
  }
  // To the next unit in whatever block.
  __device__ __forceinline__ void Next(int warp) {
    slice += kWarps;
    Carry();
    SkipEmpty(warp);
  }
  __device__ __forceinline__ void SkipEmpty(int warp) {
    while (tile >= block_tile_end()) {
      NextBlock();
      if (done()) return;
      Enter(warp);
    }
  }
};

// Stages of one warp.
template <TileFormat kFormat, int kStages>
struct Ring {
  uint32_t shared;  // of the lane's bytes of stage 0
  const std::byte* base;
  int stage_bytes;
  int fill = 0;  // stage to fill next
  int part = 0;  // of the slice

  // Requests the next stage of the walk, which it advances.
  __device__ __forceinline__ void Fill(const WeightTiles& weight, Walk& walk, int warp, int lane) {
    if (!walk.done()) {
      const int slice = walk.block_slice + walk.slice;
      const int tiles = weight.tiles_of(slice);
      const std::byte* from = weight.data + walk.tile * weight.row_tile_bytes +
                              static_cast<int64_t>(slice) * SliceStride(weight);
      const uint32_t to = shared + fill * stage_bytes;
      const std::byte* codes = from + part * kStageCodes + lane * 16;
      const int vectors = (tiles - part * TilesPerStage(kFormat)) * VectorsPerTile(kFormat);
#pragma unroll
      for (int v = 0; v < kStageVectors; ++v)
        if (v < vectors) ptx::CopyAsync16To(to + v * 512, codes + v * 512);
      const int scale_bytes = ScaleBytes(kFormat, weight.group_columns);
      const std::byte* scales = from + tiles * CodeBytes(kFormat);
      for (int at = lane * 16; at < scale_bytes; at += 512)
        ptx::CopyAsync16To(to - lane * 16 + kStageCodes + at, scales + at);
      if (++part == StagesPerSlice(kFormat)) {
        part = 0;
        walk.Next(warp);
      }
    }
    ptx::CommitCopies();
    fill = fill + 1 == kStages ? 0 : fill + 1;
  }

  __device__ __forceinline__ static int SliceStride(const WeightTiles& weight) {
    return kSliceTiles * CodeBytes(kFormat) + ScaleBytes(kFormat, weight.group_columns);
  }
};

// Vectors of x that a lane reads: n8 tile `nt`, half h of a k-tile of the chunk.
__device__ __forceinline__ int XVector(int k_tile, int h, int m, int token, int q) {
  return (k_tile * 2 + h) * m * 4 + token * 4 + q;
}

// x of k-tiles [first, first + tiles), modulo x_tiles, into shared memory.
__device__ __forceinline__ void StageX(const DecodeArgs& args, int first, int tiles,
                                       uint4* shared) {
  const bool aligned = (reinterpret_cast<uintptr_t>(args.x) % 16 == 0) && args.x_stride % 8 == 0;
  const int vectors = tiles * 8;  // of a token
  const int total = vectors * args.m;
  int token = 0;
  int vector = static_cast<int>(threadIdx.x);
  constexpr int kAtOnce = 4;
  for (int i = static_cast<int>(threadIdx.x); i < total; i += kAtOnce * kThreads) {
    uint4 values[kAtOnce];
    int places[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      while (vector >= vectors) {
        vector -= vectors;
        ++token;
      }
      places[j] = -1;
      if (token < args.m) {
        const int tile = vector / 8, q = vector / 2 % 4, h = vector % 2;
        places[j] = XVector(tile, h, args.m, token, q);
        int x_tile = first + tile;
        while (x_tile >= args.weight.x_tiles) x_tile -= args.weight.x_tiles;
        const int column = x_tile * kTileColumns + q * 16 + h * 8;
        const uint16_t* from = args.x + token * args.x_stride + column;
        if (aligned && column + 8 <= args.weight.k) {
          values[j] = *reinterpret_cast<const uint4*>(from);
        } else {
          uint32_t words[4];
          for (int w = 0; w < 4; ++w) {
            const uint32_t low = column + 2 * w < args.weight.k ? from[2 * w] : 0;
            const uint32_t high = column + 2 * w + 1 < args.weight.k ? from[2 * w + 1] : 0;
            words[w] = low | high << 16;
          }
          values[j] = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
      vector += kThreads;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (places[j] >= 0) shared[places[j]] = values[j];
  }
}

// One chain of MMAs over a k-tile's atoms, for every n8 tile of tokens.
template <int kTokenTiles>
__device__ __forceinline__ void MultiplyTile(const uint32_t (&a)[4][4], const uint4* x, int m,
                                             int k_tile, int lane, float (&acc)[kTokenTiles][4]) {
#pragma unroll
  for (int nt = 0; nt < kTokenTiles; ++nt) {
    const int token = min(nt * 8 + lane / 4, m - 1);
    const uint4 low = x[XVector(k_tile, 0, m, token, lane % 4)];
    const uint4 high = x[XVector(k_tile, 1, m, token, lane % 4)];
    ptx::MmaBf16(acc[nt], a[0], low.x, low.y);
    ptx::MmaBf16(acc[nt], a[1], low.z, low.w);
    ptx::MmaBf16(acc[nt], a[2], high.x, high.y);
    ptx::MmaBf16(acc[nt], a[3], high.z, high.w);
  }
}

// sum += scale * group, and a new group from zero.
template <int kTokenTiles>
__device__ __forceinline__ void EndGroup(GroupScales::Rows scale, float (&group)[kTokenTiles][4],
                                         float (&sum)[kTokenTiles][4]) {
#pragma unroll
  for (int nt = 0; nt < kTokenTiles; ++nt)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[nt][i] = __fmaf_rn(i < 2 ? scale.low : scale.high, group[nt][i], sum[nt][i]);
      group[nt][i] = 0.0f;
    }
}

// Keeps the fragments of lanes with q / 2 == half.
__device__ __forceinline__ void KeepHalf(uint32_t (&a)[4][4], int half, int lane) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int r = 0; r < 4; ++r) a[j][r] = lane % 4 / 2 == half ? a[j][r] : 0;
}

// The CTA's shared memory.
struct Shared {
  uint4* x;
  float* partials;  // (units, token slots, 16 rows)
  float* running;   // sums of row tiles that go on, (slots, token slots, 16 rows)
  float* scales;    // row scales, then bias, of the CTA's row tiles
  std::byte* ring;
};

// Adds the slice sums of units [begin, end) of a block, writes finished outputs. `slots`: tokens
// rounded up to a power of two. `pass`: counts reductions, for running sums of a lone chunk.
__device__ __forceinline__ void Reduce(const DecodeArgs& args, const DecodePlan& plan,
                                       const Shared& shared, const Walk& block, int first_tile,
                                       int slot_shift, int begin, int end, int pass) {
  const int width = block.block_width();
  const int slices = block.slices;
  const bool one_chunk = plan.chunk_slices >= slices;
  const int from_tile = begin / width;
  const int to_tile = (end - 1) / width + 1;
  const int values = 16 << slot_shift;  // of a row tile
  const int total = (to_tile - from_tile) * values;
  for (int i = static_cast<int>(threadIdx.x); i < total; i += kThreads) {
    const int value = i & (values - 1);
    const int token = value >> 4;
    if (token >= args.m) continue;
    const int in_block = from_tile + (i >> (4 + slot_shift));
    const int unit_begin = max(begin, in_block * width);
    const int unit_end = min(end, (in_block + 1) * width);
    const int first_slice = block.block_slice + unit_begin - in_block * width;
    const int last_slice = block.block_slice + unit_end - in_block * width;
    const int read_slot = one_chunk ? (pass + 1) % 2 : in_block;
    const int write_slot = one_chunk ? pass % 2 : in_block;
    float sum = first_slice == 0 ? 0.0f : shared.running[read_slot * values + value];
    const float* partial = shared.partials + (unit_begin - begin) * values + value;
#pragma unroll 4
    for (int unit = unit_begin; unit < unit_end; ++unit, partial += values) sum += *partial;
    if (last_slice < slices) {
      shared.running[write_slot * values + value] = sum;
      continue;
    }
    const int tile = block.block_tile + in_block;
    const int row = tile * kTileRows + value % 16;
    if (row >= args.weight.n) continue;
    const int local = (tile - first_tile) * kTileRows + value % 16;
    float result = sum * shared.scales[local];
    if (args.bias != nullptr)
      result += shared.scales[(block.tile_end - first_tile) * kTileRows + local];
    const int64_t at = token * args.y_stride + row;
    if (args.y != nullptr) {
      args.y[at] = Bf16FromFloat(result);
    } else {
      args.y_f32[at] = result;
    }
  }
}

template <TileFormat kFormat, int kTokenTiles, int kStages>
__global__ __launch_bounds__(kThreads,
                             kTokenTiles == 1 ? 2 : 1) void DecodeKernel(const DecodeArgs args,
                                                                         const DecodePlan plan) {
  extern __shared__ uint4 memory[];
  const WeightTiles& weight = args.weight;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int block = static_cast<int>(blockIdx.x);
  const int first_tile =
      static_cast<int>(static_cast<int64_t>(weight.row_tiles) * block / gridDim.x);
  const int tile_end =
      static_cast<int>(static_cast<int64_t>(weight.row_tiles) * (block + 1) / gridDim.x);

  Shared shared;
  shared.x = memory;
  auto* at = reinterpret_cast<std::byte*>(memory) + plan.x_bytes;
  shared.running = reinterpret_cast<float*>(at);
  at += plan.run_bytes;
  shared.scales = reinterpret_cast<float*>(at);
  at += plan.scale_bytes;
  shared.ring = at;
  const int stage_bytes = StageBytes(kFormat, weight.group_columns);
  shared.partials = reinterpret_cast<float*>(at + kWarps * kStages * stage_bytes);
  std::byte* const my_stages = shared.ring + warp * kStages * stage_bytes;

  Walk walk = {.tile_end = tile_end,
               .slices = weight.slices(),
               .group_tiles = plan.group_tiles,
               .chunk_slices = plan.chunk_slices,
               .block_tile = first_tile};
  Walk loads = walk;
  if (!loads.done()) {
    loads.Enter(warp);
    loads.SkipEmpty(warp);
  }
  Ring<kFormat, kStages> ring = {ptx::SharedAddress(my_stages) + lane * 16, weight.data,
                                 stage_bytes};
#pragma unroll
  for (int i = 0; i < kStages; ++i) ring.Fill(weight, loads, warp, lane);
  const int rows = (tile_end - first_tile) * kTileRows;
  for (int i = static_cast<int>(threadIdx.x); i < rows; i += kThreads) {
    const int row = first_tile * kTileRows + i;
    shared.scales[i] = weight.row_scales[row];
    if (args.bias != nullptr) shared.scales[rows + i] = row < weight.n ? args.bias[row] : 0.0f;
  }
  ptx::LaunchSuccessor();
  ptx::WaitForPredecessor();

  int slot_shift = 0;
  while (1 << slot_shift < args.m) ++slot_shift;
  const int values = 16 << slot_shift;
  int stage = 0;
  int pass = 0;
  for (; !walk.done(); walk.NextBlock()) {
    const int width = walk.block_width();
    const int units = (walk.block_tile_end() - walk.block_tile) * width;
    const int first_k_tile = walk.block_slice * kSliceTiles;
    StageX(args, first_k_tile, min(width * kSliceTiles, weight.k_tiles - first_k_tile), shared.x);
    __syncthreads();
    int slice = warp;  // in the chunk
    while (slice >= width) slice -= width;
    for (int begin = 0; begin < units; begin += plan.partial_units, ++pass) {
      const int end = min(units, begin + plan.partial_units);
      for (int unit = begin + warp; unit < end; unit += kWarps) {
        const int tiles = weight.tiles_of(walk.block_slice + slice);
        float sum[kTokenTiles][4] = {};
        float group[kTokenTiles][4] = {};
        for (int part = 0; part < StagesPerSlice(kFormat); ++part) {
          ptx::WaitForCopies<kStages - 1>();
          __syncwarp();
          const std::byte* bytes = my_stages + stage * stage_bytes;
          stage = stage + 1 == kStages ? 0 : stage + 1;
          uint4 codes[kStageVectors];
#pragma unroll
          for (int v = 0; v < kStageVectors; ++v)
            codes[v] = *reinterpret_cast<const uint4*>(bytes + v * 512 + lane * 16);
          const LaneScales<kFormat> scales(bytes + kStageCodes, weight.group_columns, lane);
          if constexpr (!HasGroups(kFormat)) {
            __syncwarp();
            ring.Fill(weight, loads, warp, lane);
          }
#pragma unroll
          for (int i = 0; i < TilesPerStage(kFormat); ++i) {
            const int tile = part * TilesPerStage(kFormat) + i;
            if (tile >= tiles) break;
            uint4 tile_codes[VectorsPerTile(kFormat)];
#pragma unroll
            for (int v = 0; v < VectorsPerTile(kFormat); ++v)
              tile_codes[v] = codes[i * VectorsPerTile(kFormat) + v];
            uint32_t a[4][4];
            scales.Decode(tile_codes, tile, a);
            const int k_tile = slice * kSliceTiles + tile;
            if constexpr (!HasGroups(kFormat)) {
              MultiplyTile<kTokenTiles>(a, shared.x, args.m, k_tile, lane, sum);
            } else {
              const int columns = weight.group_columns;
              const int column = tile * kTileColumns;
              if (columns == 32) {
                for (int half = 0; half < 2; ++half) {
                  uint32_t kept[4][4];
                  for (int j = 0; j < 4; ++j)
                    for (int r = 0; r < 4; ++r) kept[j][r] = a[j][r];
                  KeepHalf(kept, half, lane);
                  MultiplyTile<kTokenTiles>(kept, shared.x, args.m, k_tile, lane, group);
                  EndGroup<kTokenTiles>(scales.GroupScale(column + 32 * half), group, sum);
                }
              } else {
                MultiplyTile<kTokenTiles>(a, shared.x, args.m, k_tile, lane, group);
                if ((column + kTileColumns) % columns == 0 || tile + 1 == tiles)
                  EndGroup<kTokenTiles>(scales.GroupScale(column), group, sum);
              }
            }
          }
          if constexpr (HasGroups(kFormat)) {
            __syncwarp();
            ring.Fill(weight, loads, warp, lane);
          }
        }
        float* partial = shared.partials + (unit - begin) * values + lane / 4;
#pragma unroll
        for (int nt = 0; nt < kTokenTiles; ++nt) {
          const int token = nt * 8 + lane % 4 * 2;
          if (token < args.m) {
            partial[token * 16] = sum[nt][0];
            partial[token * 16 + 8] = sum[nt][2];
          }
          if (token + 1 < args.m) {
            partial[token * 16 + 16] = sum[nt][1];
            partial[token * 16 + 24] = sum[nt][3];
          }
        }
        slice += kWarps;
        while (slice >= width) slice -= width;
      }
      __syncthreads();
      Reduce(args, plan, shared, walk, first_tile, slot_shift, begin, end, pass);
      if (begin + plan.partial_units < units) __syncthreads();
    }
    __syncthreads();  // x and the partials are read no more once all have come here
  }
}

// Null for what has no instance.
template <TileFormat kFormat>
const void* KernelOf(int token_tiles, int stages) {
  switch (token_tiles * 8 + stages) {
    case 8 + 1:
      return reinterpret_cast<const void*>(&DecodeKernel<kFormat, 1, 1>);
    case 8 + 2:
      return reinterpret_cast<const void*>(&DecodeKernel<kFormat, 1, 2>);
    case 16 + 1:
      return reinterpret_cast<const void*>(&DecodeKernel<kFormat, 2, 1>);
    case 16 + 2:
      return reinterpret_cast<const void*>(&DecodeKernel<kFormat, 2, 2>);
    case 32 + 1:
      return reinterpret_cast<const void*>(&DecodeKernel<kFormat, 4, 1>);
    case 32 + 2:
      return reinterpret_cast<const void*>(&DecodeKernel<kFormat, 4, 2>);
    case 64 + 1:
      return reinterpret_cast<const void*>(&DecodeKernel<kFormat, 8, 1>);
    case 64 + 2:
      return reinterpret_cast<const void*>(&DecodeKernel<kFormat, 8, 2>);
    default:
      return nullptr;
  }
}

}  // namespace nibble::kernels::cuda::decode
