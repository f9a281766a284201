#include "formats/float_tensor.h"

#include <cstring>

#include "formats/json_file.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"

namespace nibble::formats {
namespace {

float FloatAt(const TensorView& view, int64_t index) {
  if (view.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, view.data + index * 4, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, view.data + index * 2, sizeof bits);
  return view.dtype == DType::kBF16 ? Bf16ToFloat(bits) : F16ToFloat(bits);
}

}  // namespace

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

Result<std::vector<float>> ReadFloats(const Checkpoint& checkpoint, const TensorEntry& entry,
                                      int64_t first, int64_t step, int64_t count) {
  if (!IsFloat(entry.dtype)) {
    return Fail(Code::kCorruption, "{}: tensor {}: dtype {}, expected F32, BF16 or F16",
                checkpoint.path(), Quoted(entry.name), DTypeName(entry.dtype));
  }
  // Values of one row need no more than that row.
  const int64_t row = entry.shape.rank() > 1 ? entry.shape.elements() / entry.shape[0] : 0;
  const bool in_row = row > 0 && count > 0 && first / row == (first + (count - 1) * step) / row;
  NIBBLE_ASSIGN(const TensorData data,
                in_row ? checkpoint.ReadSlice(entry, first / row, 1) : checkpoint.Read(entry));
  if (in_row) first %= row;
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    values[static_cast<size_t>(i)] = FloatAt(data.view, first + i * step);
  }
  return values;
}

}  // namespace nibble::formats
