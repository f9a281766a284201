// Row-major bytes out of a matrix whose wanted rows lie apart, or that is stored transposed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace nibble::formats {

// A matrix somewhere in a mapping. Strides are in elements.
struct StoredMatrix {
  const std::byte* data = nullptr;
  int64_t element_bytes = 1;
  int64_t columns = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
};

// Row i of the selection is row (first + i * step) / divisor of the matrix.
struct RowSelection {
  int64_t first = 0;
  int64_t step = 1;
  int64_t count = 0;
  int64_t divisor = 1;

  int64_t Source(int64_t i) const { return (first + i * step) / divisor; }
};

// Bytes and, if they are a copy, what owns them.
struct GatheredBytes {
  const std::byte* data = nullptr;
  std::shared_ptr<const void> owner;  // null: in place
};

// The selected rows, row-major without gaps: in place if they lie so, else copied.
GatheredBytes GatherRows(const StoredMatrix& matrix, const RowSelection& rows);

// An uninitialised buffer and the same as an owner.
std::shared_ptr<std::byte[]> MakeBuffer(int64_t bytes);

// One owner of all of them; nulls and repetitions are left out.
std::shared_ptr<const void> JoinOwners(std::vector<std::shared_ptr<const void>> owners);

}  // namespace nibble::formats
