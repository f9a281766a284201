// Rows of a packed table, dequantised as QuantView defines it: the same products and roundings.
#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear/e2m1_order.h"
#include "kernels/cuda/linear/linear.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Where one element lies.
struct Place {
  const std::byte* codes;   // of the k-tile
  const std::byte* scales;  // of the slice
  int tile;                 // in the slice
  int row;                  // in the row tile
  int column;               // in the k-tile

  __device__ int lane() const { return row % 8 * 4 + column / 16; }
};

__device__ Place PlaceOf(const WeightTiles& table, int row, int column, int plane) {
  const int k_tile = plane * table.x_tiles + column / kTileColumns;
  const int slice = k_tile / kSliceTiles;
  const std::byte* start = table.data + row / kTileRows * table.row_tile_bytes +
                           static_cast<int64_t>(slice) * table.slice_stride();
  Place place;
  place.tile = k_tile % kSliceTiles;
  place.codes = start + place.tile * CodeBytes(table.format);
  place.scales = start + table.tiles_of(slice) * CodeBytes(table.format);
  place.row = row % kTileRows;
  place.column = column % kTileColumns;
  return place;
}

__device__ uint32_t Word(const std::byte* at) { return *reinterpret_cast<const uint32_t*>(at); }

// The inverse of what pack.cu does (fragments.cuh has the orders).
__device__ uint8_t E2M1CodeAt(const Place& p) {
  const std::byte* const block = p.codes + p.lane() * 16 + p.row / 8 * 8;
  const uint32_t words[2] = {Word(block), Word(block + 4)};
  return E2M1At(words, p.column % 16);
}

__device__ int Int4At(const Place& p) {
  const int column = p.column % 16;
  const uint32_t word = Word(p.codes + p.lane() * 16 + p.row / 8 * 8 + column / 8 * 4);
  return word >> (column % 2 * 16 + column % 8 / 2 * 4) & 15;
}

__device__ uint8_t ByteAt(const Place& p) {
  constexpr int kByteOf[4] = {1, 3, 0, 2};
  const int at = p.row / 8 * 512 + p.lane() * 16 + p.column % 16 / 4 * 4 + kByteOf[p.column % 4];
  return static_cast<uint8_t>(p.codes[at]);
}

__device__ float Bf16At(const Place& p) {
  const int at = (p.row / 8 * 2 + p.column % 16 / 8) * 512 + p.lane() * 16 + p.column % 8 * 2;
  return Bf16ToFloat(*reinterpret_cast<const uint16_t*>(p.codes + at));
}

__device__ float Nvfp4Scale(const Place& p, float row_scale) {
  const int byte = static_cast<int>(p.scales[p.lane() * 8 + p.tile * 2 + p.row / 8]);
  if (byte == 0) return 0.0f;
  const float scale = __uint_as_float((byte / 8 - 10 + 127) << 23 | (byte & 7) << 20);
  return scale * (row_scale / 256.0f);
}

// 2^(e - 127) from the byte and the row's remainder (fragments.cuh).
__device__ float MxScale(const Place& p, float row_scale, int placed_exponent) {
  const int byte = static_cast<int>(p.scales[p.lane() / 2 * 8 + p.tile * 2 + p.row / 8]);
  return byte == 0 ? 0.0f : ldexpf(row_scale, byte - 127 - placed_exponent);
}

__device__ int Group(const WeightTiles& table, const Place& p) {
  return (p.tile * kTileColumns + p.column) / table.group_columns * kTileRows + p.row;
}

__device__ float GroupScale(const WeightTiles& table, const Place& p) {
  return reinterpret_cast<const float*>(p.scales)[Group(table, p)];
}

__device__ int Zero(const WeightTiles& table, const Place& p) {
  const int zeros = kSliceColumns / table.group_columns * kTileRows * 4;
  return static_cast<int>(p.scales[zeros + Group(table, p)]);
}

__device__ float ElementAt(const WeightTiles& table, int row, int column) {
  const Place p = PlaceOf(table, row, column, 0);
  const float row_scale = table.row_scales[row];
  switch (table.format) {
    case TileFormat::kNvfp4:
      return E2M1ToFloat(E2M1CodeAt(p)) * Nvfp4Scale(p, row_scale);
    case TileFormat::kMxfp4:
      return E2M1ToFloat(E2M1CodeAt(p)) * MxScale(p, row_scale, 126);
    case TileFormat::kMxfp8:
      return E4M3ToFloat(ByteAt(p)) * MxScale(p, row_scale, 120);
    case TileFormat::kFp8:
      return E4M3ToFloat(ByteAt(p)) * row_scale;
    case TileFormat::kFp8Groups:
      return E4M3ToFloat(ByteAt(p)) * GroupScale(table, p);
    case TileFormat::kInt4:
      return static_cast<float>(Int4At(p) - Zero(table, p)) * GroupScale(table, p);
    case TileFormat::kInt8:
      return static_cast<float>(ByteAt(p) - Zero(table, p)) * GroupScale(table, p);
    case TileFormat::kBf16:
      break;
  }
  float sum = Bf16At(p);
  for (int plane = 1; plane * table.x_tiles < table.k_tiles; ++plane)
    sum += Bf16At(PlaceOf(table, row, column, plane));
  return sum;
}

__global__ void EmbedKernel(const int32_t* ids, const int32_t* drawn, const WeightTiles table,
                            uint16_t* out, float scale) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  const int column = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (column >= table.k) return;
  const int64_t token = blockIdx.y;
  int32_t id = ids[token];
  if (id < 0) id = drawn[-1 - id];
  const float value = ElementAt(table, id, column);
  out[token * table.k + column] = Bf16FromFloat(RoundToBf16(value) * scale);
}

}  // namespace

void Embed(const OpContext& context, const EmbedParams& p) {
  const WeightTiles& table = AsCuda(*p.table).tiles();
  constexpr int64_t kMaxTokens = 65535;  // of a grid's y
  for (int64_t token = 0; token < p.t; token += kMaxTokens) {
    const int64_t t = p.t - token < kMaxTokens ? p.t - token : kMaxTokens;
    const auto blocks = static_cast<unsigned>((table.k + kThreads - 1) / kThreads);
    LaunchPdl(EmbedKernel, dim3(blocks, static_cast<unsigned>(t)), dim3(kThreads), 0,
              StreamOf(context), p.ids + token, p.drawn, table, p.out + token * table.k, p.scale);
  }
}

}  // namespace nibble::kernels::cuda
