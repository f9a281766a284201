#include "kernels/cuda/linear/weight.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/linear/fill.h"
#include "kernels/cuda/linear/pack.h"
#include "kernels/weight_check.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kAlignment = 256;
// The slots of a lane that packs a single weight.
constexpr int64_t kSlotBytes = int64_t{8} << 20;

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

// Bytes of data, scales and zeros of a part's rows.
struct RowBytes {
  int64_t data;
  int64_t scales;  // of one scale row
  int64_t zeros;

  explicit RowBytes(const QuantView& view)
      : data(view.data_bytes() / view.n),
        scales(view.scale_bytes() / CeilDiv(view.n, view.scale_block_n)),
        zeros(view.zero_bytes() / view.n) {}

  int64_t Total(int64_t rows) const {
    return rows * (data + scales + zeros) + scales + 3 * kAlignment;
  }
  int64_t RowsIn(int64_t bytes) const {
    return std::max<int64_t>(0, bytes - Total(0)) / (data + scales + zeros);
  }
};

// Held while a thread starts what a slot's rows need. Inside the driver threads would take turns,
// too, but call by call, and be put to sleep and woken up each time: a mixture has tens of
// thousands of small weights.
std::mutex& DriverTurn() {
  static std::mutex mutex;
  return mutex;
}

// Stored rows on their way through a lane: as many as a slot holds travel together and are packed
// on the device behind their arrival.
class Stage {
 public:
  // `bytes` of the target's tiles and what follows are cleared before rows are packed.
  Stage(UploadLane& lane, const PackTarget& target, int64_t bytes)
      : lane_(lane), target_(target), to_clear_(bytes) {}

  // Rows of one part, from tile_row on.
  Status Add(const QuantView& view, int64_t tile_row) {
    const RowBytes bytes(view);
    const auto slot_bytes = static_cast<int64_t>(lane_.slot_bytes());
    if (bytes.RowsIn(slot_bytes) == 0)
      return Fail(Code::kUnsupported, "rows of {} columns: one does not fit into {} bytes", view.k,
                  slot_bytes);
    if (!pending_.empty() && makes_up_ != (view.made_up != nullptr)) Flush();
    for (int64_t begin = 0; begin < view.n;) {
      int64_t rows = std::min(view.n - begin, bytes.RowsIn(slot_bytes - used_));
      // A slot's rest that takes few rows is not worth a launch.
      if (rows < std::min(view.n - begin, kFewRows) && used_ > 0) {
        Flush();
        continue;
      }
      NIBBLE_TRY(Put(view, bytes, begin, rows, tile_row + begin));
      begin += rows;
    }
    return {};
  }

  void Flush() {
    if (pending_.empty()) return;
    const std::lock_guard turn(DriverTurn());
    lane_.Clear(target_.tiles, static_cast<size_t>(std::exchange(to_clear_, 0)));
    if (makes_up_) {
      FillRows(made_up_, lane_.stream());
      made_up_.clear();
    } else {
      lane_.Send(slot_, static_cast<size_t>(used_));
    }
    PackRows(pending_, target_, lane_.stream());
    lane_.Launched(slot_);
    pending_.clear();
    used_ = 0;
  }

 private:
  static constexpr int64_t kFewRows = 256;

  Status Put(const QuantView& view, const RowBytes& bytes, int64_t begin, int64_t rows,
             int64_t tile_row) {
    if (pending_.empty()) slot_ = lane_.Next();
    makes_up_ = view.made_up != nullptr;
    const int64_t first_scale_row = begin / view.scale_block_n;
    const int64_t scale_rows = (begin + rows - 1) / view.scale_block_n + 1 - first_scale_row;
    QuantView stored = view;  // in the slot's half of the host, though nothing may be written there
    stored.n = rows;
    if (makes_up_) {
      stored.data = MakeUp(view.made_up->data, begin, rows, bytes.data);
      stored.scales = MakeUp(view.made_up->scales, first_scale_row, scale_rows, bytes.scales);
    } else {
      stored.data = Copy(view.data + begin * bytes.data, rows * bytes.data);
      stored.scales = Copy(view.scales + first_scale_row * bytes.scales, scale_rows * bytes.scales);
      stored.zeros = reinterpret_cast<const uint8_t*>(
          Copy(reinterpret_cast<const std::byte*>(view.zeros) + begin * bytes.zeros,
               rows * bytes.zeros));
      // The copy is in the caches. An error names the row of the whole.
      const bool alone = view.scale_block_n == 1;
      if (!alone || !CheckBlockScales(stored, 0, rows))
        NIBBLE_TRY(CheckBlockScales(view, begin, begin + rows));
    }
    pending_.push_back({
        .format = view.format,
        .scale_dtype = view.scale_dtype,
        .data = OnDevice(stored.data),
        .scales = OnDevice(stored.scales),
        .zeros = reinterpret_cast<const uint8_t*>(
            OnDevice(reinterpret_cast<const std::byte*>(stored.zeros))),
        .rows = rows,
        .first_row = begin,
        .first_scale_row = first_scale_row,
        .tile_row = tile_row,
        .scale_block_n = view.scale_block_n,
        .scale_block_k = std::min(view.scale_block_k, view.k),
        .tensor_scale = view.global_scale,
    });
    return {};
  }

  // Both: null for no bytes.
  const std::byte* Copy(const std::byte* from, int64_t bytes) {
    if (bytes == 0) return nullptr;
    std::byte* const to = Take(bytes);
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return to;
  }
  const std::byte* MakeUp(MadeUpRows rows, int64_t first_row, int64_t count, int64_t row_bytes) {
    if (row_bytes == 0) return nullptr;
    std::byte* const to = Take(count * row_bytes);
    rows.first += first_row * rows.stride;
    made_up_.push_back({rows, count, row_bytes, slot_.device + (to - slot_.host)});
    return to;
  }
  std::byte* Take(int64_t bytes) {
    std::byte* const taken = slot_.host + used_;
    used_ += RoundUp(bytes, kAlignment);
    return taken;
  }
  const std::byte* OnDevice(const std::byte* host) const {
    return host == nullptr ? nullptr : slot_.device + (host - slot_.host);
  }

  UploadLane& lane_;
  const PackTarget target_;
  int64_t to_clear_;
  UploadLane::Slot slot_;
  int64_t used_ = 0;
  std::vector<StoredRows> pending_;  // in the slot
  bool makes_up_ = false;            // all of them, or none
  std::vector<RowsToFill> made_up_;  // what they consist of
};

// A lane for one weight.
Result<std::unique_ptr<UploadLane>> LaneFor(std::span<const QuantView> parts, Device& device) {
  int64_t bytes = 0;
  for (const QuantView& part : parts) bytes += RowBytes(part).Total(part.n);
  return device.MakeLane(static_cast<size_t>(RoundUp(std::min(bytes, kSlotBytes), kAlignment)));
}

}  // namespace

Result<std::unique_ptr<CudaWeight>> CudaWeight::Pack(const PackParams& params, Device& device) {
  NIBBLE_TRY(CheckWeight(params));
  const std::span<const QuantView> parts = params.parts;
  int64_t n = 0;
  for (const QuantView& part : parts) n += part.n;
  if (constexpr int64_t kLargest = int64_t{1} << 30; n > kLargest || parts[0].k > kLargest) {
    return Fail(Code::kUnsupported, "a weight of {} x {}: at most {} rows and columns", n,
                parts[0].k, kLargest);
  }

  const QuantView& first = parts[0];
  std::unique_ptr<CudaWeight> weight(new CudaWeight());
  weight->format_ = first.format;
  weight->input_scale_ = StackedInputScale(parts);
  weight->fp8_ = Fp8ActivationsOf(parts);
  WeightTiles& tiles = weight->tiles_;
  tiles = LayoutOf(parts);
  weight->pairs_rows_ = params.gate_up && tiles.n % kTileRows == 0;
  const int64_t tile_bytes = RoundUp(tiles.row_tiles * tiles.row_tile_bytes, kAlignment);
  const int64_t row_scale_bytes =
      RoundUp(int64_t{tiles.row_tiles} * kTileRows * sizeof(float), kAlignment);
  const int64_t order_bytes =
      first.column_order == nullptr ? 0 : RoundUp(first.k * sizeof(int32_t), kAlignment);
  const int64_t multiplier_bytes =
      first.input_multiplier == nullptr ? 0 : RoundUp(first.k * sizeof(float), kAlignment);
  NIBBLE_ASSIGN(weight->buffer_,
                Buffer::Allocate(static_cast<size_t>(tile_bytes + row_scale_bytes + order_bytes +
                                                     multiplier_bytes),
                                 device));
  std::byte* const base = weight->buffer_.data();
  auto* const row_scales = reinterpret_cast<float*>(base + tile_bytes);
  tiles.data = base;
  tiles.row_scales = row_scales;
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

  std::unique_ptr<UploadLane> own_lane;
  if (params.lane == nullptr) {
    NIBBLE_ASSIGN(own_lane, LaneFor(parts, device));
  }
  UploadLane& lane = own_lane != nullptr ? *own_lane : *params.lane;
  const PackTarget target = {.weight = tiles,
                             .tiles = base,
                             .row_scales = row_scales,
                             .paired_rows = weight->pairs_rows_ ? tiles.n / 2 : 0};
  Stage stage(lane, target, tile_bytes + row_scale_bytes);
  int64_t tile_row = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (Status status = stage.Add(parts[i], tile_row); !status) {
      // Of what is on its way into this weight.
      NIBBLE_TRY(lane.Finish());
      if (parts.size() == 1) return tl::unexpected<Error>(status.error());
      return tl::unexpected<Error>(status.error().Context(fmt::format("part {}", i)));
    }
    tile_row += parts[i].n;
  }
  stage.Flush();
  if (own_lane == nullptr) return weight;
  NIBBLE_TRY(lane.Finish());
  device.Synchronize();  // kernels read weights before they wait for predecessors
  if (const std::string failure = device.failure(); !failure.empty())
    return Fail(Code::kInternal, "packing a weight of {} x {}: {}", n, first.k, failure);
  return weight;
}

bool ComposesActivation(const LinearParams& params) {
  const bool paired = AsCuda(*params.weight).pairs_rows();
  NIBBLE_CHECK(!paired || params.activation != nullptr,
               "a weight packed with gate_up, {} x {}, in a linear without an activation",
               params.weight->n(), params.weight->k());
  return params.activation != nullptr && !paired;
}

}  // namespace nibble::kernels::cuda
