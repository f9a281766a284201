// The piece of work of a warp: one slice (16 rows, 256 columns) of a weight times up to 8 kTiles
// rows of x, from a stage of the warp's ring in shared memory into MMA accumulators. The order of
// summation is that of weight_tiles.h.
#pragma once

#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/cuda/moe/expert_linears.h"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace nibble::kernels::cuda::moe {

// The format that a kernel is compiled for, where it is one.
template <Formats kFormats>
inline constexpr TileFormat kOnlyFormat =
    kFormats == Formats::kMxfp4 ? TileFormat::kMxfp4 : TileFormat::kNvfp4;

// One slice of a row tile. tiles <= 0: there is none.
struct Slice {
  const std::byte* data;
  int first_tile;  // of the row tile
  int tiles;       // up to 4
};

template <Formats kFormats>
__device__ __forceinline__ Slice SliceOf(const Source& source, int row_tile, int slice) {
  int stride = source.slice_stride;
  if constexpr (kFormats != Formats::kAny) {
    constexpr TileFormat kFormat = kOnlyFormat<kFormats>;
    stride = kSliceTiles * CodeBytes(kFormat) + ScaleBytes(kFormat, 0);
  }
  return {source.data + (int64_t{row_tile} * source.row_tile_bytes + slice * stride),
          slice * kSliceTiles, min(source.k_tiles - slice * kSliceTiles, kSliceTiles)};
}

// Starts the copy of a slice into a stage; the caller commits. In kernels for one format, scales
// lie behind room for four k-tiles.
template <Formats kFormats>
__device__ __forceinline__ void CopySlice(std::byte* stage, const Slice& slice,
                                          const Source& source, int lane) {
  const uint32_t to = ptx::SharedAddress(stage) + lane * 16;
  const std::byte* const from = slice.data + lane * 16;
  if constexpr (kFormats != Formats::kAny) {
    constexpr TileFormat kFormat = kOnlyFormat<kFormats>;
    constexpr int kTile = CodeBytes(kFormat);
    static_assert(kTile == 512);
#pragma unroll
    for (int i = 0; i < kSliceTiles; ++i)
      if (i < slice.tiles) ptx::CopyAsync16To(to + i * kTile, from + i * kTile);
    if (lane * 16 < ScaleBytes(kFormat, 0) && slice.tiles > 0)
      ptx::CopyAsync16To(to + kSliceTiles * kTile, from + slice.tiles * kTile);
  } else if (slice.tiles > 0) {
    const int code_bytes = slice.tiles * CodeBytes(source.format);
    const int scale_bytes = ScaleBytes(source.format, source.group_columns);
#pragma unroll 1
    for (int at = 0; at < code_bytes; at += 512) ptx::CopyAsync16To(to + at, from + at);
#pragma unroll 1
    for (int at = lane * 16; at < scale_bytes; at += 512)
      ptx::CopyAsync16To(to - lane * 16 + code_bytes + at, slice.data + code_bytes + at);
  }
}

// The rows of x that a lane multiplies by: of column tile c, row lane / 4, from its first column
// on.
template <int kTiles>
struct LaneRows {
  const uint16_t* row[kTiles];
};

// One k-tile's A fragments times the rows' 64 columns from x_column on.
template <int kTiles>
__device__ __forceinline__ void MultiplyTile(const uint32_t (&a)[4][4],
                                             const LaneRows<kTiles>& rows, int x_column,
                                             float (&sum)[kTiles][4]) {
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
    const auto* x = reinterpret_cast<const uint4*>(rows.row[c] + x_column);
    const uint4 first = x[0], second = x[1];
    ptx::MmaBf16(sum[c], a[0], first.x, first.y);
    ptx::MmaBf16(sum[c], a[1], first.z, first.w);
    ptx::MmaBf16(sum[c], a[2], second.x, second.y);
    ptx::MmaBf16(sum[c], a[3], second.z, second.w);
  }
}

template <TileFormat kFormat>
struct LaneCodes {
  static constexpr int kVectors = CodeBytes(kFormat) / 512;
  uint4 vectors[kVectors];

  __device__ __forceinline__ LaneCodes(const std::byte* tile, int lane) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      vectors[v] = *reinterpret_cast<const uint4*>(tile + v * 512 + lane * 16);
  }
};

template <int kTiles>
__device__ __forceinline__ void Clear(float (&sum)[kTiles][4]) {
#pragma unroll
  for (int c = 0; c < kTiles; ++c) sum[c][0] = sum[c][1] = sum[c][2] = sum[c][3] = 0.0f;
}

// Scales that are exact in BF16: one chain. Planes of wide weights meet x again.
template <TileFormat kFormat, int kTiles>
__device__ __forceinline__ void SumChain(const std::byte* stage, const std::byte* slice_scales,
                                         const Slice& slice, const Source& source,
                                         const LaneRows<kTiles>& rows, int lane,
                                         float (&sum)[kTiles][4]) {
  if (slice.tiles <= 0) return;
  const LaneScales<kFormat> scales(slice_scales, source.group_columns, lane);
#pragma unroll
  for (int i = 0; i < kSliceTiles; ++i) {
    if (i >= slice.tiles) break;
    int x_tile = slice.first_tile + i;
    if constexpr (kFormat == TileFormat::kBf16) x_tile %= source.x_tiles;
    const LaneCodes<kFormat> codes(stage + i * CodeBytes(kFormat), lane);
    uint32_t a[4][4];
    scales.Decode(codes.vectors, i, a);
    MultiplyTile(a, rows, x_tile * kTileColumns, sum);
  }
}

// A lane's columns of x of k-tiles kFirst .. kFirst + 1 of a slice, for one column tile.
struct LaneColumns {
  uint4 halves[2][2];

  __device__ __forceinline__ void Load(const uint16_t* x, int first, int tiles) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      halves[i][0] = halves[i][1] = make_uint4(0, 0, 0, 0);
      if (first + i < tiles) {
        const auto* at = reinterpret_cast<const uint4*>(x + (first + i) * kTileColumns);
        halves[i][0] = at[0];
        halves[i][1] = at[1];
      }
    }
  }
};

// The chain of one column tile. Where the slice is short, columns are zero and the stage holds
// some finite weights.
template <TileFormat kFormat>
__device__ __forceinline__ void SumTwoTiles(const std::byte* stage,
                                            const LaneScales<kFormat>& scales, int first,
                                            const LaneColumns& columns, int lane, float (&sum)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const LaneCodes<kFormat> codes(stage + (first + i) * CodeBytes(kFormat), lane);
    uint32_t a[4][4];
    scales.Decode(codes.vectors, first + i, a);
    const uint4 low = columns.halves[i][0], high = columns.halves[i][1];
    ptx::MmaBf16(sum, a[0], low.x, low.y);
    ptx::MmaBf16(sum, a[1], low.z, low.w);
    ptx::MmaBf16(sum, a[2], high.x, high.y);
    ptx::MmaBf16(sum, a[3], high.z, high.w);
  }
}

// x of one row comes with the weights: behind the scales, 256 columns.
template <Formats kFormats, typename Ring>
__device__ __forceinline__ void SumStagedSlice(Ring& ring, int tiles, int row, int lane,
                                               float (&sum)[1][4]) {
  constexpr TileFormat kFormat = kOnlyFormat<kFormats>;
  constexpr int kScales = kSliceTiles * CodeBytes(kFormat);
  Clear(sum);
  const std::byte* const stage = ring.Wait();
  const auto* const x =
      reinterpret_cast<const uint16_t*>(stage + kScales + ScaleBytes(kFormat, 0)) +
      row * kSliceColumns + lane % 4 * 16;
  const LaneScales<kFormat> scales(stage + kScales, 0, lane);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    LaneColumns columns;
    columns.Load(x, 2 * half, tiles);
    SumTwoTiles(stage, scales, 2 * half, columns, lane, sum[0]);
  }
  ring.Release();
}

template <int kTiles, typename Rows>
__device__ __forceinline__ void AddGroup(Rows scale, float (&group)[kTiles][4],
                                         float (&sum)[kTiles][4]) {
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sum[c][i] = __fmaf_rn(i < 2 ? scale.low : scale.high, group[c][i], sum[c][i]);
  }
  Clear(group);
}

template <TileFormat kFormat, int kTiles>
__device__ __noinline__ void SumGroups(const std::byte* stage, const Slice& slice,
                                       const Source& source, const LaneRows<kTiles>& rows, int lane,
                                       float (&sum)[kTiles][4]) {
  const int columns = source.group_columns;
  const LaneScales<kFormat> scales(stage + slice.tiles * CodeBytes(kFormat), columns, lane);
  float group[kTiles][4];
  Clear(group);
  for (int i = 0; i < slice.tiles; ++i) {
    const int x_column = (slice.first_tile + i) * kTileColumns;
    const LaneCodes<kFormat> codes(stage + i * CodeBytes(kFormat), lane);
    uint32_t a[4][4];
    scales.Decode(codes.vectors, i, a);
    if (columns < kTileColumns) {
      for (int half = 0; half < 2; ++half) {
        const bool mine = (lane % 4 < 2) == (half == 0);
        uint32_t masked[4][4];
#pragma unroll
        for (int j = 0; j < 16; ++j) masked[j / 4][j % 4] = mine ? a[j / 4][j % 4] : 0;
        MultiplyTile(masked, rows, x_column, group);
        AddGroup(scales.GroupScale(i * kTileColumns + half * 32), group, sum);
      }
      continue;
    }
    MultiplyTile(a, rows, x_column, group);
    if ((i + 1) * kTileColumns % columns == 0 || i + 1 == slice.tiles)
      AddGroup(scales.GroupScale(i * kTileColumns), group, sum);
  }
}

template <int kTiles>
__device__ __forceinline__ void SumAnyFormat(const std::byte* stage, const Slice& slice,
                                             const Source& source, const LaneRows<kTiles>& rows,
                                             int lane, float (&sum)[kTiles][4]) {
  const std::byte* const scales = stage + slice.tiles * CodeBytes(source.format);
  switch (source.format) {
    case TileFormat::kNvfp4:
      return SumChain<TileFormat::kNvfp4>(stage, scales, slice, source, rows, lane, sum);
    case TileFormat::kMxfp4:
      return SumChain<TileFormat::kMxfp4>(stage, scales, slice, source, rows, lane, sum);
    case TileFormat::kBf16:
      return SumChain<TileFormat::kBf16>(stage, scales, slice, source, rows, lane, sum);
    case TileFormat::kFp8:
      return SumChain<TileFormat::kFp8>(stage, scales, slice, source, rows, lane, sum);
    case TileFormat::kMxfp8:
      return SumChain<TileFormat::kMxfp8>(stage, scales, slice, source, rows, lane, sum);
    case TileFormat::kFp8Groups:
      return SumGroups<TileFormat::kFp8Groups>(stage, slice, source, rows, lane, sum);
    case TileFormat::kInt4:
      return SumGroups<TileFormat::kInt4>(stage, slice, source, rows, lane, sum);
    case TileFormat::kInt8:
      return SumGroups<TileFormat::kInt8>(stage, slice, source, rows, lane, sum);
  }
}

// Sums of rows lane / 4 and + 8, columns 2 (lane % 4), + 1 of every column tile, from the ring's
// oldest stage. Ends with the stage's release. kWide: registers for all of x at once.
template <Formats kFormats, int kTiles, bool kWide, typename Ring>
__device__ __forceinline__ void SumSlice(Ring& ring, const Slice& slice, const Source& source,
                                         const LaneRows<kTiles>& rows, int lane,
                                         float (&sum)[kTiles][4]) {
  Clear(sum);
  if constexpr (kFormats == Formats::kAny) {
    SumAnyFormat(ring.Wait(), slice, source, rows, lane, sum);
  } else {
    constexpr TileFormat kFormat = kOnlyFormat<kFormats>;
    constexpr int kScales = kSliceTiles * CodeBytes(kFormat);
    if constexpr (kTiles == 1) {
      const uint16_t* const x = rows.row[0] + slice.first_tile * kTileColumns;
      LaneColumns first, second;
      first.Load(x, 0, slice.tiles);
      if constexpr (kWide) second.Load(x, 2, slice.tiles);
      const std::byte* const stage = ring.Wait();
      const LaneScales<kFormat> scales(stage + kScales, 0, lane);
      SumTwoTiles(stage, scales, 0, first, lane, sum[0]);
      if constexpr (!kWide) second.Load(x, 2, slice.tiles);
      SumTwoTiles(stage, scales, 2, second, lane, sum[0]);
    } else {
      const std::byte* const stage = ring.Wait();
      SumChain<kFormat>(stage, stage + kScales, slice, source, rows, lane, sum);
    }
  }
  ring.Release();
}

// ---- Sums of slices in shared memory, until they are added in order

// Floats from one column to the next: the lanes of a warp store without conflicts.
inline constexpr int kColumnStride = 20;

template <int kTiles>
__device__ __forceinline__ void StoreSums(float* partial, int columns, int lane,
                                          const float (&sum)[kTiles][4],
                                          int stride = kColumnStride) {
  const int row = lane / 4;
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
    const int column = c * 8 + lane % 4 * 2;
    float* const at = partial + column * stride + row;
    if (column < columns) {
      at[0] = sum[c][0];
      at[8] = sum[c][2];
    }
    if (column + 1 < columns) {
      at[stride] = sum[c][1];
      at[stride + 8] = sum[c][3];
    }
  }
}

// Ascending from the first slice's; `stride` floats from one slice to the next. *from: of a column
// and row. Eight are read at a time.
__device__ __forceinline__ float AddSlices(const float* from, int slices, int stride) {
  float sum = 0.0f;
#pragma unroll 1
  for (int s = 0; s < slices; s += 8) {
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = s + i < slices ? from[(s + i) * stride] : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += values[i];
  }
  return sum;
}

// A row's last factor and addend.
struct RowScale {
  float scale;
  float bias;

  __device__ __forceinline__ float Apply(float sum) const { return sum * scale + bias; }
};

// ---- The stream of slices of a warp

// Of kernels for one format of 4 bits.
inline constexpr int kLeanStages = 2;

struct RingShape {
  int32_t stages = 2;
  int32_t stage_bytes = 0;
};

// Stages of one warp, a slice in each, filled in the order in which they are used. kStages: so
// many, or 0: as many as the shape says, any number up to 3.
template <int kStages>
class WarpRing {
 public:
  __device__ __forceinline__ WarpRing(std::byte* base, RingShape shape)
      : base_(base),
        stages_(kStages > 0 ? kStages : shape.stages),
        stage_bytes_(shape.stage_bytes) {}

  // Every call commits one group of copies, also one of nothing.
  template <Formats kFormats>
  __device__ __forceinline__ void Fill(const Slice& slice, const Source& source, int lane) {
    CopySlice<kFormats>(base_ + fill_ * stage_bytes_, slice, source, lane);
    Skip();
  }
  // The stage that the next Fill fills.
  __device__ __forceinline__ std::byte* Filling() const { return base_ + fill_ * stage_bytes_; }
  __device__ __forceinline__ void Skip() {
    ptx::CommitCopies();
    fill_ = Next(fill_);
  }
  // The oldest stage, once its copies have landed, of all lanes.
  __device__ __forceinline__ const std::byte* Wait() {
    if constexpr (kStages > 0) {
      ptx::WaitForCopies<kStages - 1>();
    } else if (stages_ == 1) {
      ptx::WaitForCopies<0>();
    } else if (stages_ == 2) {
      ptx::WaitForCopies<1>();
    } else {
      ptx::WaitForCopies<2>();
    }
    __syncwarp();
    return base_ + use_ * stage_bytes_;
  }
  // Of the stage that Wait returned.
  __device__ __forceinline__ void Release() {
    __syncwarp();
    use_ = Next(use_);
  }

 private:
  __device__ __forceinline__ int Next(int stage) const {
    return stage + 1 == (kStages > 0 ? kStages : stages_) ? 0 : stage + 1;
  }

  std::byte* base_;
  int stages_;
  int stage_bytes_;
  int fill_ = 0;
  int use_ = 0;
};

}  // namespace nibble::kernels::cuda::moe
