#include <cuda_runtime.h>

#include <algorithm>
#include <bit>

#include "kernels/cuda/linear/fragments.cuh"
#include "kernels/cuda/linear/pack.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostParts = 8;      // of a launch
constexpr int kBlockColumns = 16;  // a lane's, of one row
constexpr int kBlocksPerTile = kTileColumns / kBlockColumns;
constexpr int kNvfp4Columns = 16;
constexpr int kMxColumns = 32;

// Scales above 2^100 stand over blocks of zeros only (CheckBlockScales).
constexpr int kLargestE8M0 = 227;

struct Job : PackTarget {
  StoredRows in;

  // Where a row of `in` lies in the packed weight.
  __device__ int64_t RowOf(int64_t row) const {
    const int64_t of_stack = in.tile_row + row;
    return paired_rows > 0 ? PairedPlace(of_stack, paired_rows) : of_stack;
  }
};

struct Jobs {
  PackTarget target;
  StoredRows in[kMostParts];

  __device__ Job Of(int part) const { return {target, in[part]}; }
};

__device__ uint8_t ByteAt(const std::byte* data, int64_t at) {
  return static_cast<uint8_t>(data[at]);
}

__device__ uint16_t HalfAt(const std::byte* data, int64_t at) {
  return static_cast<uint16_t>(ByteAt(data, 2 * at) | ByteAt(data, 2 * at + 1) << 8);
}

__device__ uint32_t WordAt(const std::byte* data, int64_t at) {
  return HalfAt(data, 2 * at) | static_cast<uint32_t>(HalfAt(data, 2 * at + 1)) << 16;
}

// Scale `at` of FP8, INT4 and INT8 weights.
__device__ float WideScale(const StoredRows& in, int64_t at) {
  switch (in.scale_dtype) {
    case DType::kF32:
      return __uint_as_float(WordAt(in.scales, at));
    case DType::kBF16:
      return Bf16ToFloat(HalfAt(in.scales, at));
    case DType::kF16:
      return F16ToFloat(HalfAt(in.scales, at));
    case DType::kF8E4M3:
      return E4M3ToFloat(ByteAt(in.scales, at));
    default:
      return E8M0ToFloat(ByteAt(in.scales, at));
  }
}

__device__ int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ float WideScaleOf(const Job& job, int64_t row, int64_t column) {
  const StoredRows& in = job.in;
  const int64_t columns = CeilDiv(job.weight.k, in.scale_block_k);
  const int64_t scale_row = (in.first_row + row) / in.scale_block_n - in.first_scale_row;
  return WideScale(in, scale_row * columns + column / in.scale_block_k);
}

__device__ bool IsMx(TileFormat format) {
  return format == TileFormat::kMxfp4 || format == TileFormat::kMxfp8;
}

// How E8M0 scales of (row, 32 columns) are stored.
__device__ int MxCode(const Job& job, int64_t row, int64_t block) {
  const int64_t blocks = CeilDiv(job.weight.k, kMxColumns);
  int64_t at = row * blocks + block;
  if (job.weight.format == TileFormat::kMxfp8) {
    const StoredRows& in = job.in;
    const int64_t scale_row = (in.first_row + row) / in.scale_block_n - in.first_scale_row;
    at =
        scale_row * CeilDiv(job.weight.k, in.scale_block_k) + block * kMxColumns / in.scale_block_k;
  }
  return min(static_cast<int>(ByteAt(job.in.scales, at)), kLargestE8M0);
}

// The largest E8M0 code of a row, from its row scale and back: 2^(code - 128) and 2^(code - 134)
// bring values * 2^(254 - 127) * 2^-126 or 2^-120 back.
__device__ float MxRowScale(TileFormat format, int largest) {
  return ldexpf(1.0f, largest - (format == TileFormat::kMxfp4 ? 128 : 134));
}
__device__ int LargestMxCode(TileFormat format, float row_scale) {
  return ilogbf(row_scale) + (format == TileFormat::kMxfp4 ? 128 : 134);
}

// One warp per row; blockIdx.y: the part, here and below.
__global__ void RowScales(const __grid_constant__ Jobs jobs) {
  const Job job = jobs.Of(static_cast<int>(blockIdx.y));
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (row >= job.in.rows) return;
  float scale = 1.0f;
  if (job.weight.format == TileFormat::kNvfp4) {
    scale = job.in.tensor_scale * 256.0f;
  } else if (job.weight.format == TileFormat::kFp8) {
    scale = WideScaleOf(job, row, 0);
  } else if (IsMx(job.weight.format)) {
    int largest = 0;
    const int blocks = static_cast<int>(CeilDiv(job.weight.k, kMxColumns));
    for (int block = lane; block < blocks; block += 32)
      largest = max(largest, MxCode(job, row, block));
    largest = __reduce_max_sync(0xFFFFFFFFu, static_cast<unsigned>(largest));
    scale = MxRowScale(job.weight.format, largest);
  }
  if (lane == 0) job.row_scales[job.RowOf(row)] = scale;
}

// Where a row's block of 16 columns lies.
struct Place {
  std::byte* tile;    // the k-tile's codes
  std::byte* scales;  // the slice's
  int tile_in_slice;
  int row;   // in the row tile
  int lane;  // that owns it
};

__device__ Place PlaceOf(const Job& job, int64_t row, int k_tile, int q) {
  const int64_t at = job.RowOf(row);
  const int slice = k_tile / kSliceTiles;
  const TileFormat format = job.weight.format;
  std::byte* start = job.tiles + at / kTileRows * job.weight.row_tile_bytes +
                     static_cast<int64_t>(slice) * job.weight.slice_stride();
  Place place;
  place.row = static_cast<int>(at % kTileRows);
  place.lane = place.row % 8 * 4 + q;
  place.tile_in_slice = k_tile % kSliceTiles;
  place.tile = start + place.tile_in_slice * CodeBytes(format);
  place.scales = start + job.weight.tiles_of(slice) * CodeBytes(format);
  return place;
}

__device__ int NibbleAt(const Job& job, int64_t row, int64_t column) {
  if (column >= job.weight.k) return 0;
  const int pair = ByteAt(job.in.data, row * (job.weight.k / 2) + column / 2);
  return column % 2 == 0 ? pair & 15 : pair >> 4;
}

// Codes of 16 columns. `clear`: keep signs only.
__device__ void PackNibbles(const Job& job, int64_t row, int64_t column, const Place& place,
                            bool e2m1, bool clear) {
  uint32_t words[2] = {};
#pragma unroll
  for (int pair = 0; pair < 8; ++pair) {
    uint32_t even = NibbleAt(job, row, column + 2 * pair);
    uint32_t odd = NibbleAt(job, row, column + 2 * pair + 1);
    if (clear) even &= 8, odd &= 8;
    if (e2m1) {
      AddE2M1(even, odd, pair, words);
    } else {
      words[pair / 4] |= (even | odd << 16) << (4 * (pair % 4));
    }
  }
  *reinterpret_cast<uint2*>(place.tile + place.lane * 16 + place.row / 8 * 8) =
      make_uint2(words[0], words[1]);
}

__device__ void PackBytes(const Job& job, int64_t row, int64_t column, const Place& place) {
  uint32_t words[4] = {};
  constexpr int kOrder[4] = {2, 0, 3, 1};  // columns of bytes 0..3: fragments.cuh
  for (int j = 0; j < 4; ++j)
    for (int byte = 0; byte < 4; ++byte) {
      const int64_t at = column + 4 * j + kOrder[byte];
      if (at >= job.weight.k) continue;
      words[j] |= static_cast<uint32_t>(ByteAt(job.in.data, row * job.weight.k + at)) << (8 * byte);
    }
  *reinterpret_cast<uint4*>(place.tile + place.row / 8 * 512 + place.lane * 16) =
      make_uint4(words[0], words[1], words[2], words[3]);
}

// Plane `plane` of a value: truncated to BF16, what is left, and what is left then.
__device__ uint16_t PlaneOf(float value, int plane) {
  for (int i = 0;; ++i) {
    const uint32_t top = __float_as_uint(value) & 0xFFFF0000u;
    if (i == plane) return static_cast<uint16_t>(top >> 16);
    value -= __uint_as_float(top);
  }
}

__device__ uint16_t WideElement(const Job& job, int64_t row, int64_t column, int plane) {
  if (column >= job.weight.k) return 0;
  const int64_t at = row * job.weight.k + column;
  if (job.in.format == WeightFormat::kBf16) return HalfAt(job.in.data, at);
  const float value = job.in.format == WeightFormat::kF16
                          ? F16ToFloat(HalfAt(job.in.data, at))
                          : __uint_as_float(WordAt(job.in.data, at));
  return PlaneOf(value, plane);
}

__device__ void PackWide(const Job& job, int64_t row, int64_t column, int plane,
                         const Place& place) {
  for (int half = 0; half < 2; ++half) {
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t at = column + 8 * half + 2 * i;
      words[i] = WideElement(job, row, at, plane) |
                 static_cast<uint32_t>(WideElement(job, row, at + 1, plane)) << 16;
    }
    *reinterpret_cast<uint4*>(place.tile + (place.row / 8 * 2 + half) * 512 + place.lane * 16) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// NaN weights make their row NaN; placed bits would read as 480.
__device__ bool HasNanE4M3(const Job& job, int64_t row, int64_t column) {
  for (int i = 0; i < kBlockColumns && column + i < job.weight.k; ++i)
    if (E4M3IsNan(ByteAt(job.in.data, row * job.weight.k + column + i))) return true;
  return false;
}

// e << 3 | m of fragments.cuh; 0 for 0 and for NaN, which stands over zeros only.
__device__ int Nvfp4ScaleByte(uint8_t e4m3) {
  if (e4m3 == 0 || E4M3IsNan(e4m3)) return 0;
  const uint32_t bits = __float_as_uint(E4M3ToFloat(e4m3));
  return (static_cast<int>(bits >> 23) - 127 + 10) << 3 | (bits >> 20 & 7);
}

__device__ void PackMxScale(const Job& job, int64_t row, int64_t column, const Place& place) {
  const int largest = LargestMxCode(job.weight.format, job.row_scales[job.RowOf(row)]);
  const int byte = 254 - largest + MxCode(job, row, column / kMxColumns);
  place.scales[place.lane / 2 * 8 + place.tile_in_slice * 2 + place.row / 8] =
      static_cast<std::byte>(byte < kMinMxByte ? 0 : byte);
}

__device__ void PackGroupScale(const Job& job, int64_t row, int64_t column, const Place& place) {
  const int groups = kSliceColumns / job.weight.group_columns;
  const int group = static_cast<int>(column % kSliceColumns) / job.weight.group_columns;
  reinterpret_cast<float*>(place.scales)[group * kTileRows + place.row] =
      WideScaleOf(job, row, column);
  if (job.weight.format == TileFormat::kFp8Groups) return;
  const StoredRows& in = job.in;
  int zero = job.weight.format == TileFormat::kInt4 ? 8 : 128;
  if (in.zeros != nullptr)
    zero = in.zeros[row * CeilDiv(job.weight.k, in.scale_block_k) + column / in.scale_block_k];
  place.scales[groups * kTileRows * 4 + group * kTileRows + place.row] =
      static_cast<std::byte>(zero);
}

// One thread per row and block of 16 columns of a plane.
__global__ void PackBlocks(const __grid_constant__ Jobs jobs) {
  const Job job = jobs.Of(static_cast<int>(blockIdx.y));
  const int blocks = job.weight.k_tiles * kBlocksPerTile;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = index / blocks;
  const int block = static_cast<int>(index % blocks);
  if (row >= job.in.rows) return;
  const int k_tile = block / kBlocksPerTile;
  const int q = block % kBlocksPerTile;
  const int plane = k_tile / job.weight.x_tiles;
  const int64_t column =
      static_cast<int64_t>(k_tile % job.weight.x_tiles) * kTileColumns + q * kBlockColumns;
  if (column >= job.weight.k) return;
  const Place place = PlaceOf(job, row, k_tile, q);
  const TileFormat format = job.weight.format;
  switch (format) {
    case TileFormat::kNvfp4: {
      const int64_t at = row * (job.weight.k / kNvfp4Columns) + column / kNvfp4Columns;
      const int byte = Nvfp4ScaleByte(ByteAt(job.in.scales, at));
      PackNibbles(job, row, column, place, true, byte == 0);
      place.scales[place.lane * 8 + place.tile_in_slice * 2 + place.row / 8] =
          static_cast<std::byte>(byte);
      return;
    }
    case TileFormat::kMxfp4:
      PackNibbles(job, row, column, place, true, false);
      if (column % kMxColumns == 0) PackMxScale(job, row, column, place);
      return;
    case TileFormat::kBf16:
      PackWide(job, row, column, plane, place);
      return;
    case TileFormat::kInt4:
      PackNibbles(job, row, column, place, false, false);
      break;
    default:
      PackBytes(job, row, column, place);
      break;
  }
  if (format != TileFormat::kInt8 && format != TileFormat::kInt4 && HasNanE4M3(job, row, column))
    job.row_scales[job.RowOf(row)] = __uint_as_float(0x7FC00000u);
  if (format == TileFormat::kMxfp8 && column % kMxColumns == 0)
    PackMxScale(job, row, column, place);
  if (HasGroups(format) && column % kMxColumns == 0) PackGroupScale(job, row, column, place);
}

}  // namespace

void PackRows(std::span<const StoredRows> stored, const PackTarget& target, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  for (size_t begin = 0; begin < stored.size(); begin += kMostParts) {
    const size_t count = std::min<size_t>(kMostParts, stored.size() - begin);
    Jobs jobs = {.target = target};
    int64_t rows = 0;
    for (size_t i = 0; i < count; ++i) {
      jobs.in[i] = stored[begin + i];
      rows = std::max(rows, jobs.in[i].rows);
    }
    if (rows == 0) continue;
    const auto grid = [count](int64_t items, int per_block) {
      return dim3(static_cast<unsigned>((items + per_block - 1) / per_block),
                  static_cast<unsigned>(count));
    };
    RowScales<<<grid(rows, kThreads / 32), kThreads, 0, on>>>(jobs);
    PackBlocks<<<grid(rows * target.weight.k_tiles * kBlocksPerTile, kThreads), kThreads, 0, on>>>(
        jobs);
  }
}

}  // namespace nibble::kernels::cuda
