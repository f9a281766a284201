// Repacking of stored weights into tiles (weight_tiles.h), on the GPU. Kernels write only what
// belongs to the rows they are given; padding is the caller's, who clears the memory first.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/linear/weight_tiles.h"
#include "tensor/quant_view.h"

namespace nibble::kernels::cuda {

// Some consecutive rows of one part, as stored, in device memory.
struct StoredRows {
  WeightFormat format = WeightFormat::kBf16;
  DType scale_dtype = DType::kF32;
  const std::byte* data = nullptr;    // of row 0
  const std::byte* scales = nullptr;  // of the part's scale row first_scale_row
  const uint8_t* zeros = nullptr;     // of row 0, or null
  int64_t rows = 0;
  int64_t first_row = 0;        // in the part
  int64_t first_scale_row = 0;  // in the part
  int64_t tile_row = 0;         // in the stack
  int64_t scale_block_n = 1;
  int64_t scale_block_k = 1;
  float tensor_scale = 1.0f;
};

// A weight on the device whose rows are to be written.
struct PackTarget {
  WeightTiles weight;           // sizes
  std::byte* tiles = nullptr;   // its own, writable
  float* row_scales = nullptr;  // the same
  int64_t paired_rows = 0;      // F where rows of gate and up are paired
};

// As few launches as there can be.
void PackRows(std::span<const StoredRows> stored, const PackTarget& target, void* stream);

}  // namespace nibble::kernels::cuda
