#include "formats/gather.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace nibble::formats {
namespace {

// Square tiles of a transposition: reads and writes of one tile stay in the first-level cache.
constexpr int64_t kTile = 32;

template <int64_t kElementBytes>
void CopyTransposed(const StoredMatrix& matrix, const RowSelection& rows, std::byte* out) {
  for (int64_t row0 = 0; row0 < rows.count; row0 += kTile) {
    const int64_t row_end = std::min(row0 + kTile, rows.count);
    for (int64_t column0 = 0; column0 < matrix.columns; column0 += kTile) {
      const int64_t column_end = std::min(column0 + kTile, matrix.columns);
      for (int64_t row = row0; row < row_end; ++row) {
        const std::byte* from = matrix.data + rows.Source(row) * matrix.row_stride * kElementBytes;
        std::byte* to = out + row * matrix.columns * kElementBytes;
        for (int64_t column = column0; column < column_end; ++column) {
          std::memcpy(to + column * kElementBytes,
                      from + column * matrix.column_stride * kElementBytes, kElementBytes);
        }
      }
    }
  }
}

void CopyRows(const StoredMatrix& matrix, const RowSelection& rows, std::byte* out) {
  const int64_t row_bytes = matrix.columns * matrix.element_bytes;
  for (int64_t row = 0; row < rows.count; ++row) {
    std::memcpy(out + row * row_bytes,
                matrix.data + rows.Source(row) * matrix.row_stride * matrix.element_bytes,
                static_cast<size_t>(row_bytes));
  }
}

}  // namespace

std::shared_ptr<std::byte[]> MakeBuffer(int64_t bytes) {
  return std::shared_ptr<std::byte[]>(new std::byte[static_cast<size_t>(bytes)]);
}

GatheredBytes GatherRows(const StoredMatrix& matrix, const RowSelection& rows) {
  const bool whole_rows = matrix.column_stride == 1 || matrix.columns == 1;
  const bool one_after_the_other =
      rows.count == 1 || (rows.step == rows.divisor && matrix.row_stride == matrix.columns);
  if (whole_rows && one_after_the_other) {
    return {matrix.data + rows.Source(0) * matrix.row_stride * matrix.element_bytes, nullptr};
  }
  auto buffer = MakeBuffer(rows.count * matrix.columns * matrix.element_bytes);
  if (whole_rows) {
    CopyRows(matrix, rows, buffer.get());
  } else if (matrix.element_bytes == 1) {
    CopyTransposed<1>(matrix, rows, buffer.get());
  } else if (matrix.element_bytes == 2) {
    CopyTransposed<2>(matrix, rows, buffer.get());
  } else {
    CopyTransposed<4>(matrix, rows, buffer.get());
  }
  return {buffer.get(), buffer};
}

std::shared_ptr<const void> JoinOwners(std::vector<std::shared_ptr<const void>> owners) {
  std::erase(owners, nullptr);
  std::ranges::sort(owners);
  const auto repeated = std::ranges::unique(owners);
  owners.erase(repeated.begin(), repeated.end());
  if (owners.size() == 1) return owners[0];
  return std::make_shared<const std::vector<std::shared_ptr<const void>>>(std::move(owners));
}

}  // namespace nibble::formats
