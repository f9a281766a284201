// Made-up rows of a weight (tensor/made_up.h), written on the GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/made_up.h"

namespace nibble::kernels::cuda {

// out: `count` rows of row_bytes, one after another, 8-byte aligned. Columns of a row are bytes of
// the tensor from rows.first + i * rows.stride on.
void FillRows(const MadeUpRows& rows, int64_t count, int64_t row_bytes, std::byte* out,
              void* stream);

}  // namespace nibble::kernels::cuda
