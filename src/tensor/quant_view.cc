#include "tensor/quant_view.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"
#include "numerics/f16.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble {
namespace {

template <typename T>
T LoadUnaligned(const std::byte* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float LoadFloat(const std::byte* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return LoadUnaligned<float>(data, index);
    case DType::kBF16:
      return Bf16ToFloat(LoadUnaligned<uint16_t>(data, index));
    case DType::kF16:
      return F16ToFloat(LoadUnaligned<uint16_t>(data, index));
    case DType::kF8E4M3:
      return E4M3ToFloat(LoadUnaligned<uint8_t>(data, index));
    case DType::kU8:
    case DType::kF8E8M0:
      return E8M0ToFloat(LoadUnaligned<uint8_t>(data, index));
    default:
      break;
  }
  NIBBLE_CHECK(false, "dtype {} is not a float", DTypeName(dtype));
  return 0;
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

uint8_t CodeAt(const QuantView& view, int64_t row, int64_t column) {
  return UnpackE2M1(reinterpret_cast<const uint8_t*>(view.data) + row * (view.k / 2), column);
}

// Whether two arrays of `count` elements hold the same; null is like no other array.
template <typename T>
bool SameElements(const T* a, const T* b, int64_t count) {
  if (a == b) return true;
  return a != nullptr && b != nullptr && std::equal(a, a + count, b);
}

int IntCodeAt(const QuantView& view, int64_t row, int64_t column) {
  const auto pair = std::to_integer<int>(view.data[row * (view.k / 2) + column / 2]);
  return column % 2 == 0 ? pair & 15 : pair >> 4;
}

}  // namespace

std::string_view WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kF16:
      return "f16";
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kFp8:
      return "fp8";
    case WeightFormat::kNvfp4:
      return "nvfp4";
    case WeightFormat::kMxfp4:
      return "mxfp4";
    case WeightFormat::kInt4:
      return "int4";
    case WeightFormat::kInt8:
      return "int8";
  }
  return "?";
}

int64_t QuantView::data_bytes() const {
  switch (format) {
    case WeightFormat::kF32:
      return n * k * 4;
    case WeightFormat::kF16:
    case WeightFormat::kBf16:
      return n * k * 2;
    case WeightFormat::kFp8:
    case WeightFormat::kInt8:
      return n * k;
    case WeightFormat::kNvfp4:
    case WeightFormat::kMxfp4:
    case WeightFormat::kInt4:
      return n * (k / 2);
  }
  return 0;
}

int64_t QuantView::scale_bytes() const {
  switch (format) {
    case WeightFormat::kNvfp4:
      return n * (k / kNvfp4Block);
    case WeightFormat::kMxfp4:
      return n * (k / kMxfp4Block);
    case WeightFormat::kFp8:
    case WeightFormat::kInt4:
    case WeightFormat::kInt8:
      return CeilDiv(n, scale_block_n) * CeilDiv(k, scale_block_k) * DTypeBits(scale_dtype) / 8;
    default:
      return 0;
  }
}

int64_t QuantView::zero_bytes() const {
  return zeros == nullptr ? 0 : n * CeilDiv(k, scale_block_k);
}

float BlockScale(const QuantView& view, int64_t row, int64_t column) {
  const int64_t columns = CeilDiv(view.k, view.scale_block_k);
  const int64_t index = row / view.scale_block_n * columns + column / view.scale_block_k;
  return LoadFloat(view.scales, view.scale_dtype, index);
}

bool SameActivations(const QuantView& a, const QuantView& b) {
  return a.k == b.k && SameElements(a.column_order, b.column_order, a.k) &&
         SameElements(a.input_multiplier, b.input_multiplier, a.k);
}

float DequantizeElement(const QuantView& view, int64_t row, int64_t column) {
  const int64_t at = row * view.k + column;
  switch (view.format) {
    case WeightFormat::kF32:
      return LoadFloat(view.data, DType::kF32, at);
    case WeightFormat::kF16:
      return LoadFloat(view.data, DType::kF16, at);
    case WeightFormat::kBf16:
      return LoadFloat(view.data, DType::kBF16, at);
    case WeightFormat::kFp8:
      return LoadFloat(view.data, DType::kF8E4M3, at) * BlockScale(view, row, column);
    case WeightFormat::kNvfp4: {
      const auto scale =
          LoadUnaligned<uint8_t>(view.scales, row * (view.k / kNvfp4Block) + column / kNvfp4Block);
      // Some exporters wrote NaN as the scale of all-zero blocks; the loader has checked the codes.
      if (E4M3IsNan(scale)) return 0.0f;
      return Nvfp4Dequantize(CodeAt(view, row, column), scale, view.global_scale);
    }
    case WeightFormat::kMxfp4: {
      const auto scale =
          LoadUnaligned<uint8_t>(view.scales, row * (view.k / kMxfp4Block) + column / kMxfp4Block);
      return Mxfp4Dequantize(CodeAt(view, row, column), scale);
    }
    case WeightFormat::kInt4:
    case WeightFormat::kInt8: {
      const bool int4 = view.format == WeightFormat::kInt4;
      const int64_t group = row * CeilDiv(view.k, view.scale_block_k) + column / view.scale_block_k;
      const int code = int4 ? IntCodeAt(view, row, column) : std::to_integer<int>(view.data[at]);
      const int zero = view.zeros != nullptr ? view.zeros[group] : (int4 ? 8 : 128);
      return static_cast<float>(code - zero) * BlockScale(view, row, column);
    }
  }
  return 0;
}

namespace {

// E2M1 codes, low nibble first, times one scale per block; scale_at(block) gives it.
template <typename ScaleAt>
void DequantizeE2M1Row(const QuantView& view, int64_t row, int64_t block, const ScaleAt& scale_at,
                       float* out) {
  const auto* codes = reinterpret_cast<const uint8_t*>(view.data) + row * (view.k / 2);
  for (int64_t begin = 0; begin < view.k; begin += block) {
    const float scale = scale_at(begin / block);
    for (int64_t column = begin; column < begin + block; ++column)
      out[column] = E2M1ToFloat(UnpackE2M1(codes, column)) * scale;
  }
}

}  // namespace

void DequantizeRow(const QuantView& view, int64_t row, float* out) {
  switch (view.format) {
    case WeightFormat::kF32:
      std::memcpy(out, view.data + row * view.k * 4, view.k * 4);
      return;
    case WeightFormat::kBf16:
      for (int64_t i = 0; i < view.k; ++i)
        out[i] = Bf16ToFloat(LoadUnaligned<uint16_t>(view.data, row * view.k + i));
      return;
    case WeightFormat::kMxfp4:
      return DequantizeE2M1Row(
          view, row, kMxfp4Block,
          [&](int64_t block) {
            return LoadFloat(view.scales, DType::kF8E8M0, row * (view.k / kMxfp4Block) + block);
          },
          out);
    case WeightFormat::kNvfp4:
      return DequantizeE2M1Row(
          view, row, kNvfp4Block,
          [&](int64_t block) {
            const auto scale =
                LoadUnaligned<uint8_t>(view.scales, row * (view.k / kNvfp4Block) + block);
            return E4M3IsNan(scale) ? 0.0f : E4M3ToFloat(scale) * view.global_scale;
          },
          out);
    default:
      for (int64_t column = 0; column < view.k; ++column)
        out[column] = DequantizeElement(view, row, column);
  }
}

}  // namespace nibble
