// Rows and columns taken out of a stored linear weight: for projections that a model wants in
// another order than they are stored in, and for the shares of tensor-parallel ranks.
//
// A contiguous run of whole rows is a view into the same memory; everything else is a copy. Bytes
// are never re-coded, so every element keeps its value.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/error.h"
#include "tensor/quant_view.h"

namespace nibble {

// Rows begin, begin + step, ... of a weight: `count` of them.
struct RowRange {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t step = 1;
};

// Columns [begin, begin + count); count 0: all.
struct ColumnRange {
  int64_t begin = 0;
  int64_t count = 0;
};

struct QuantSlice {
  QuantView view;
  std::shared_ptr<const void> owner;  // null: view is into the memory of the source
};

int64_t RowCount(std::span<const RowRange> rows);

// rows empty: all. Ranges lie inside the weight (a programmer's duty). kUnsupported where columns
// do not end on scale blocks, or where the source's columns are reordered.
Result<QuantSlice> SliceWeight(const QuantView& source, std::span<const RowRange> rows,
                               ColumnRange columns);

}  // namespace nibble
