#include "kernels/cuda/linear/weight.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <numeric>
#include <optional>

#include "base/thread_pool.h"
#include "kernels/cuda/linear/pack.h"
#include "kernels/weight_check.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kAlignment = 256;
// Stored rows pass through device memory in pieces of about that size.
constexpr int64_t kPieceBytes = int64_t{32} << 20;
constexpr int64_t kCheckRows = 64;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t value, int64_t multiple) { return CeilDiv(value, multiple) * multiple; }

bool ScalesAlongK(std::span<const QuantView> parts) {
  return std::ranges::any_of(parts, [](const QuantView& p) { return p.scale_block_k < p.k; });
}

TileFormat TileFormatOf(std::span<const QuantView> parts) {
  switch (parts[0].format) {
    case WeightFormat::kNvfp4:
      return TileFormat::kNvfp4;
    case WeightFormat::kMxfp4:
      return TileFormat::kMxfp4;
    case WeightFormat::kInt4:
      return TileFormat::kInt4;
    case WeightFormat::kInt8:
      return TileFormat::kInt8;
    case WeightFormat::kFp8: {
      if (!ScalesAlongK(parts)) return TileFormat::kFp8;
      const bool powers = std::ranges::all_of(
          parts, [](const QuantView& p) { return p.scale_dtype == DType::kF8E8M0; });
      return powers ? TileFormat::kMxfp8 : TileFormat::kFp8Groups;
    }
    default:
      return TileFormat::kBf16;
  }
}

int PlanesOf(WeightFormat format) {
  return format == WeightFormat::kF32 ? 3 : format == WeightFormat::kF16 ? 2 : 1;
}

// The longest group that no part's scale columns cross.
int GroupColumns(std::span<const QuantView> parts) {
  int64_t columns = kSliceColumns;
  for (const QuantView& part : parts)
    if (part.scale_block_k < part.k) columns = std::gcd(columns, part.scale_block_k);
  return static_cast<int>(columns);
}

WeightTiles LayoutOf(std::span<const QuantView> parts) {
  WeightTiles tiles;
  tiles.format = TileFormatOf(parts);
  for (const QuantView& part : parts) tiles.n += static_cast<int32_t>(part.n);
  tiles.k = static_cast<int32_t>(parts[0].k);
  tiles.row_tiles = static_cast<int32_t>(CeilDiv(tiles.n, kTileRows));
  tiles.x_tiles = static_cast<int32_t>(CeilDiv(tiles.k, kTileColumns));
  tiles.k_tiles = tiles.x_tiles * PlanesOf(parts[0].format);
  tiles.group_columns = HasGroups(tiles.format) ? GroupColumns(parts) : 0;
  tiles.row_tile_bytes =
      static_cast<int64_t>(tiles.k_tiles) * CodeBytes(tiles.format) +
      static_cast<int64_t>(tiles.slices()) * ScaleBytes(tiles.format, tiles.group_columns);
  return tiles;
}

// The error of the lowest row, whatever the threads.
Status CheckScales(const QuantView& view, ThreadPool* pool) {
  if (view.scale_bytes() == 0) return {};
  const int64_t chunks = CeilDiv(view.n, kCheckRows);
  std::mutex mutex;
  std::optional<Error> error;
  int64_t error_chunk = chunks;
  auto check = [&](int64_t begin, int64_t end, int) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const Status status =
          CheckBlockScales(view, chunk * kCheckRows, std::min(view.n, (chunk + 1) * kCheckRows));
      if (status) continue;
      const std::lock_guard lock(mutex);
      if (chunk < error_chunk) {
        error = status.error();
        error_chunk = chunk;
      }
      return;
    }
  };
  if (pool != nullptr) {
    pool->ParallelFor(chunks, 1, check);
  } else {
    check(0, chunks, 0);
  }
  if (error) return tl::unexpected<Error>(*std::move(error));
  return {};
}

// Stored arrays on their way through the device.
class Stage {
 public:
  static Result<Stage> Create(Device& device, int64_t bytes) {
    Stage stage(device);
    NIBBLE_ASSIGN(stage.buffer_, Buffer::Allocate(static_cast<size_t>(bytes), device));
    return stage;
  }

  void Restart() { used_ = 0; }
  std::byte* Put(const void* from, int64_t bytes) {
    std::byte* at = buffer_.data() + used_;
    device_->Upload(at, from, static_cast<size_t>(bytes));
    used_ += RoundUp(bytes, kAlignment);
    return at;
  }

 private:
  explicit Stage(Device& device) : device_(&device) {}

  Device* device_;
  Buffer buffer_;
  int64_t used_ = 0;
};

// Bytes of data, scales and zeros of a part's rows.
struct RowBytes {
  int64_t data;
  int64_t scales;  // of one scale row
  int64_t zeros;

  explicit RowBytes(const QuantView& view)
      : data(view.data_bytes() / view.n),
        scales(view.scale_bytes() / CeilDiv(view.n, view.scale_block_n)),
        zeros(view.zero_bytes() / view.n) {}

  // A multiple of the scale rows' height where several rows share one.
  int64_t RowsOfPiece() const {
    return std::max<int64_t>(kTileRows, kPieceBytes / (data + scales + zeros));
  }
  int64_t StageBytes(int64_t rows) const {
    return rows * (data + scales + zeros) + scales + 4 * kAlignment;
  }
};

void PackPart(const QuantView& view, int64_t tile_row, const WeightTiles& weight, std::byte* tiles,
              float* row_scales, Stage& stage, Device& device) {
  const RowBytes bytes(view);
  const int64_t rows_of_piece = bytes.RowsOfPiece();
  for (int64_t begin = 0; begin < view.n; begin += rows_of_piece) {
    const int64_t rows = std::min(rows_of_piece, view.n - begin);
    const int64_t first_scale_row = begin / view.scale_block_n;
    const int64_t scale_rows = (begin + rows - 1) / view.scale_block_n + 1 - first_scale_row;
    StoredRows stored = {
        .format = view.format,
        .scale_dtype = view.scale_dtype,
        .rows = rows,
        .first_row = begin,
        .first_scale_row = first_scale_row,
        .tile_row = tile_row + begin,
        .scale_block_n = view.scale_block_n,
        .scale_block_k = std::min(view.scale_block_k, view.k),
        .tensor_scale = view.global_scale,
    };
    stage.Restart();
    stored.data = stage.Put(view.data + begin * bytes.data, rows * bytes.data);
    if (bytes.scales > 0) {
      stored.scales =
          stage.Put(view.scales + first_scale_row * bytes.scales, scale_rows * bytes.scales);
    }
    if (bytes.zeros > 0) {
      stored.zeros = reinterpret_cast<const uint8_t*>(
          stage.Put(view.zeros + begin * bytes.zeros, rows * bytes.zeros));
    }
    PackRows(stored, weight, tiles, row_scales, device.stream());
  }
}

}  // namespace

Result<std::unique_ptr<CudaWeight>> CudaWeight::Pack(const PackParams& params, Device& device) {
  NIBBLE_TRY(CheckWeight(params));
  const std::span<const QuantView> parts = params.parts;
  int64_t n = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (Status status = CheckScales(parts[i], params.pool); !status) {
      if (parts.size() == 1) return tl::unexpected<Error>(status.error());
      return tl::unexpected<Error>(status.error().Context(fmt::format("part {}", i)));
    }
    n += parts[i].n;
  }
  if (constexpr int64_t kLargest = int64_t{1} << 30; n > kLargest || parts[0].k > kLargest) {
    return Fail(Code::kUnsupported, "a weight of {} x {}: at most {} rows and columns", n,
                parts[0].k, kLargest);
  }

  const QuantView& first = parts[0];
  std::unique_ptr<CudaWeight> weight(new CudaWeight());
  weight->format_ = first.format;
  WeightTiles& tiles = weight->tiles_;
  tiles = LayoutOf(parts);
  const int64_t tile_bytes = RoundUp(tiles.row_tiles * tiles.row_tile_bytes, kAlignment);
  const int64_t row_scale_bytes =
      RoundUp(int64_t{tiles.row_tiles} * kTileRows * sizeof(float), kAlignment);
  const int64_t order_bytes =
      first.column_order == nullptr ? 0 : RoundUp(first.k * sizeof(int32_t), kAlignment);
  const int64_t multiplier_bytes =
      first.input_multiplier == nullptr ? 0 : RoundUp(first.k * sizeof(float), kAlignment);
  const int64_t bytes = tile_bytes + row_scale_bytes + order_bytes + multiplier_bytes;
  NIBBLE_ASSIGN(weight->buffer_, Buffer::Allocate(static_cast<size_t>(bytes), device));
  std::byte* const base = weight->buffer_.data();
  auto* const row_scales = reinterpret_cast<float*>(base + tile_bytes);
  tiles.data = base;
  tiles.row_scales = row_scales;
  device.Clear(base, static_cast<size_t>(bytes));
  std::byte* at = base + tile_bytes + row_scale_bytes;
  if (order_bytes > 0) {
    device.Upload(at, first.column_order, first.k * sizeof(int32_t));
    weight->column_order_ = reinterpret_cast<const int32_t*>(at);
    at += order_bytes;
  }
  if (multiplier_bytes > 0) {
    device.Upload(at, first.input_multiplier, first.k * sizeof(float));
    weight->input_multiplier_ = reinterpret_cast<const float*>(at);
  }

  int64_t stage_bytes = 0;
  for (const QuantView& part : parts) {
    const RowBytes row(part);
    stage_bytes = std::max(stage_bytes, row.StageBytes(std::min(part.n, row.RowsOfPiece())));
  }
  NIBBLE_ASSIGN(Stage stage, Stage::Create(device, stage_bytes));
  int64_t tile_row = 0;
  for (const QuantView& part : parts) {
    PackPart(part, tile_row, tiles, base, row_scales, stage, device);
    tile_row += part.n;
  }
  device.Synchronize();  // the stage goes; kernels read weights before they wait for predecessors
  if (const std::string failure = device.failure(); !failure.empty())
    return Fail(Code::kInternal, "packing a weight of {} x {}: {}", n, first.k, failure);
  return weight;
}

}  // namespace nibble::kernels::cuda
