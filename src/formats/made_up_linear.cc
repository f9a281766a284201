#include "formats/made_up_linear.h"

#include <memory>

namespace nibble::formats {
namespace {

MadeUpRows RowsOf(const MadeUpBytes& bytes, const RowSelection& rows, int64_t row_bytes) {
  return {.bytes = bytes, .first = rows.first * row_bytes, .stride = rows.step * row_bytes};
}

}  // namespace

std::optional<LinearData> MakeUpLinear(const QuantView& view, const MadeUpBytes* data,
                                       const MadeUpBytes* scales, const RowSelection& rows,
                                       bool has_scales) {
  if (data == nullptr || (has_scales && scales == nullptr)) return std::nullopt;
  auto made_up = std::make_shared<MadeUpWeight>();
  made_up->data = RowsOf(*data, rows, view.data_bytes() / view.n);
  if (has_scales) {
    const int64_t scale_rows = (view.n + view.scale_block_n - 1) / view.scale_block_n;
    if (view.scale_block_n != 1 && (rows.first != 0 || rows.step != 1)) return std::nullopt;
    made_up->scales = RowsOf(*scales, rows, view.scale_bytes() / scale_rows);
  }
  LinearData linear = {.view = view, .owner = made_up};
  linear.view.made_up = made_up.get();
  return linear;
}

}  // namespace nibble::formats
