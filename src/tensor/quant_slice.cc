#include "tensor/quant_slice.h"

#include <cstring>
#include <vector>

#include "base/check.h"

namespace nibble {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the scales of a format lie: rows of `per_row` entries, each for block_n rows.
struct ScaleGrid {
  int64_t block_n = 1;
  int64_t block_k = 1;
  int64_t bytes = 0;  // per entry; 0: the format has no scales
};

ScaleGrid GridOf(const QuantView& view) {
  switch (view.format) {
    case WeightFormat::kNvfp4:
      return {1, 16, 1};
    case WeightFormat::kMxfp4:
      return {1, 32, 1};
    case WeightFormat::kFp8:
    case WeightFormat::kInt4:
    case WeightFormat::kInt8:
      return {view.scale_block_n, view.scale_block_k, DTypeBits(view.scale_dtype) / 8};
    default:
      return {};
  }
}

int64_t RowBytes(const QuantView& view, int64_t columns) {
  QuantView row = view;
  row.n = 1;
  row.k = columns;
  return row.data_bytes();
}

class Slicer {
 public:
  Slicer(const QuantView& source, ColumnRange columns)
      : source_(source),
        grid_(GridOf(source)),
        k_(columns.count > 0 ? columns.count : source.k),
        column_(columns.count > 0 ? columns.begin : 0) {}

  Status CheckColumns() const {
    if (k_ == source_.k) return {};
    if (source_.column_order != nullptr) {
      return Fail(Code::kUnsupported,
                  "a {} weight with reordered columns (act-order) cannot be split by columns; run "
                  "it on one device",
                  WeightFormatName(source_.format));
    }
    const int64_t block = grid_.bytes == 0 || grid_.block_k >= source_.k ? 2 : grid_.block_k;
    const bool ends_inside = column_ + k_ < source_.k && k_ % block != 0;
    if (column_ % block != 0 || ends_inside) {
      return Fail(Code::kUnsupported,
                  "columns {}..{} of a {} weight do not end on its scale blocks of {}", column_,
                  column_ + k_, WeightFormatName(source_.format), block);
    }
    return {};
  }

  // A view of whole rows, where scale blocks allow it.
  bool CanView(std::span<const RowRange> rows) const {
    if (k_ != source_.k || rows.size() != 1 || rows[0].step != 1) return false;
    return grid_.bytes == 0 || grid_.block_n >= source_.n || rows[0].begin % grid_.block_n == 0;
  }

  QuantView ViewRows(const RowRange& rows) const {
    QuantView view = source_;
    view.n = rows.count;
    view.data += rows.begin * RowBytes(source_, k_);
    if (grid_.bytes > 0) {
      const int64_t first = rows.begin / grid_.block_n * ScalesPerRow(source_.k);
      view.scales += first * grid_.bytes;
      if (view.zeros != nullptr) view.zeros += first;
    }
    return view;
  }

  QuantSlice Copy(std::span<const RowRange> rows) const {
    const int64_t n = RowCount(rows);
    const int64_t row_bytes = RowBytes(source_, k_);
    const int64_t scales = ScalesPerRow(k_);
    const int64_t scale_bytes = scales * grid_.bytes;
    const int64_t zero_bytes = source_.zeros != nullptr ? scales : 0;
    const auto memory =
        std::make_shared<std::vector<std::byte>>(n * (row_bytes + scale_bytes + zero_bytes));
    std::byte* data = memory->data();
    std::byte* scale = data + n * row_bytes;
    std::byte* zero = scale + n * scale_bytes;

    QuantSlice slice = {.view = source_, .owner = memory};
    slice.view.n = n;
    slice.view.k = k_;
    slice.view.data = data;
    if (grid_.bytes > 0) {
      slice.view.scales = scale;
      slice.view.scale_block_n = 1;
      if (grid_.block_k >= source_.k) slice.view.scale_block_k = k_;
    }
    if (zero_bytes > 0) slice.view.zeros = reinterpret_cast<const uint8_t*>(zero);
    if (source_.input_multiplier != nullptr) slice.view.input_multiplier += column_;

    const int64_t source_row_bytes = RowBytes(source_, source_.k);
    const int64_t column_bytes = RowBytes(source_, column_);
    const int64_t first_scale = grid_.bytes > 0 ? column_ / grid_.block_k : 0;
    for (const RowRange& range : rows) {
      for (int64_t i = 0; i < range.count; ++i) {
        const int64_t row = range.begin + i * range.step;
        std::memcpy(data, source_.data + row * source_row_bytes + column_bytes, row_bytes);
        data += row_bytes;
        if (grid_.bytes == 0) continue;
        const int64_t at = row / grid_.block_n * ScalesPerRow(source_.k) + first_scale;
        std::memcpy(scale, source_.scales + at * grid_.bytes, scale_bytes);
        scale += scale_bytes;
        if (zero_bytes == 0) continue;
        std::memcpy(zero, source_.zeros + at, zero_bytes);
        zero += zero_bytes;
      }
    }
    return slice;
  }

 private:
  int64_t ScalesPerRow(int64_t columns) const {
    return grid_.bytes == 0 ? 0 : CeilDiv(columns, grid_.block_k);
  }

  const QuantView& source_;
  const ScaleGrid grid_;
  const int64_t k_;
  const int64_t column_;
};

}  // namespace

int64_t RowCount(std::span<const RowRange> rows) {
  int64_t count = 0;
  for (const RowRange& range : rows) count += range.count;
  return count;
}

Result<QuantSlice> SliceWeight(const QuantView& source, std::span<const RowRange> rows,
                               ColumnRange columns) {
  const RowRange all = {.begin = 0, .count = source.n};
  if (rows.empty()) rows = {&all, 1};
  for (const RowRange& range : rows) {
    NIBBLE_CHECK(range.count > 0 && range.begin >= 0 &&
                     range.begin + (range.count - 1) * range.step < source.n,
                 "rows {} + {} * {} of {}", range.begin, range.count, range.step, source.n);
  }
  const Slicer slicer(source, columns);
  NIBBLE_TRY(slicer.CheckColumns());
  if (slicer.CanView(rows)) return QuantSlice{.view = slicer.ViewRows(rows[0]), .owner = nullptr};
  return slicer.Copy(rows);
}

}  // namespace nibble
