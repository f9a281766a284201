#include "formats/kv_scales.h"

#include <array>
#include <cmath>
#include <cstring>

#include "formats/json_file.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"

namespace nibble::formats {
namespace {

constexpr std::array<std::string_view, 5> kKeyNames = {"k_proj.k_scale", "k_scale", "attn.k_scale",
                                                       "qkv_proj.k_scale", "kv_scale"};
constexpr std::array<std::string_view, 5> kValueNames = {
    "v_proj.v_scale", "v_scale", "attn.v_scale", "qkv_proj.v_scale", "kv_scale"};

// All elements of a float tensor in FP32.
Result<std::vector<float>> ReadFloats(const Checkpoint& checkpoint, const TensorEntry& entry) {
  NIBBLE_ASSIGN(const TensorData data, checkpoint.Read(entry));
  std::vector<float> values(static_cast<size_t>(entry.shape.elements()));
  for (size_t i = 0; i < values.size(); ++i) {
    if (entry.dtype == DType::kF32) {
      std::memcpy(&values[i], data.view.data + i * sizeof(float), sizeof(float));
      continue;
    }
    uint16_t half;
    std::memcpy(&half, data.view.data + i * sizeof half, sizeof half);
    values[i] = entry.dtype == DType::kBF16 ? Bf16ToFloat(half) : F16ToFloat(half);
  }
  return values;
}

// [], [1], [Hk] and [Hk, 1, 1].
bool IsScaleShape(const Shape& shape) {
  for (int axis = 1; axis < shape.rank(); ++axis) {
    if (shape[axis] != 1) return false;
  }
  return shape.elements() > 0;
}

Status ReadFirst(const Checkpoint& checkpoint, std::string_view attention,
                 const std::array<std::string_view, 5>& names, std::vector<float>& scales,
                 std::vector<std::string>& used) {
  for (const std::string_view name : names) {
    const TensorEntry* entry = checkpoint.Find(std::string(attention) + "." + std::string(name));
    if (entry == nullptr) continue;
    const bool is_float =
        entry->dtype == DType::kF32 || entry->dtype == DType::kBF16 || entry->dtype == DType::kF16;
    if (!is_float || !IsScaleShape(entry->shape)) {
      return Fail(Code::kCorruption,
                  "{}: tensor {}: {} {}, expected a F32, BF16 or F16 scalar, or one per KV head",
                  checkpoint.path(), Quoted(entry->name), DTypeName(entry->dtype),
                  entry->shape.ToString());
    }
    NIBBLE_ASSIGN(scales, ReadFloats(checkpoint, *entry));
    for (const float scale : scales) {
      if (std::isfinite(scale) && scale > 0) continue;
      return Fail(Code::kCorruption, "{}: tensor {}: {}, expected finite and > 0",
                  checkpoint.path(), Quoted(entry->name), scale);
    }
    if (used.empty() || used.back() != entry->name) used.push_back(entry->name);
    return {};
  }
  return {};
}

}  // namespace

Result<KvScales> ReadKvScales(const Checkpoint& checkpoint, std::string_view attention) {
  KvScales scales;
  NIBBLE_TRY(ReadFirst(checkpoint, attention, kKeyNames, scales.k, scales.tensors));
  NIBBLE_TRY(ReadFirst(checkpoint, attention, kValueNames, scales.v, scales.tensors));
  return scales;
}

}  // namespace nibble::formats
