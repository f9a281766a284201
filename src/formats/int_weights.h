// Integer weights of every layout → the one that QuantView describes: unsigned codes (N, K), scales
// and zero points (N, G). Lossless; what lies so already is viewed in place.
//
// Act-order (a group for each column, in any order) becomes columns sorted by group and
// QuantView::column_order. Thread-safety: pure functions over an open checkpoint.
#pragma once

#include "base/error.h"
#include "formats/checkpoint.h"
#include "formats/linear_parts.h"

namespace nibble::formats {

// Codes, scales, zero points and column order of an integer linear.
Result<LinearData> ReadIntegers(const Checkpoint& checkpoint, const LinearParts& parts);

}  // namespace nibble::formats
