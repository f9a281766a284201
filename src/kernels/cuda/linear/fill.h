// Made-up rows of a weight (tensor/made_up.h), written on the GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tensor/made_up.h"

namespace nibble::kernels::cuda {

// `count` rows of row_bytes, one after another in `out`, which is 8-byte aligned. Columns of a row
// are bytes of the tensor from rows.first + i * rows.stride on.
struct RowsToFill {
  MadeUpRows rows;
  int64_t count = 0;
  int64_t row_bytes = 0;
  std::byte* out = nullptr;
};

// As few launches as there can be: threads that load side by side wait for each other's.
void FillRows(std::span<const RowsToFill> pieces, void* stream);

}  // namespace nibble::kernels::cuda
