// Values of small float tensors: scales, biases, multipliers.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"

namespace nibble::formats {

// F32, BF16 or F16.
bool IsFloat(DType dtype);

// Elements first, first + step, ... of a float tensor, row-major, `count` of them; they must exist.
// The error names the tensor if its dtype is no float.
Result<std::vector<float>> ReadFloats(const Checkpoint& checkpoint, const TensorEntry& entry,
                                      int64_t first, int64_t step, int64_t count);

}  // namespace nibble::formats
