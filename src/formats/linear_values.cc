#include "formats/linear_values.h"

#include <cmath>
#include <cstring>

#include "numerics/bf16.h"
#include "numerics/e4m3.h"
#include "numerics/f16.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::formats {
namespace {

uint8_t ByteAt(const std::byte* data, int64_t index) {
  return std::to_integer<uint8_t>(data[index]);
}

// ±0 in both nibbles of every byte.
bool CodesAreZero(const std::byte* codes, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i) {
    if ((ByteAt(codes, i) & 0x77u) != 0) return false;
  }
  return true;
}

// Index of the first byte >= 0x7F at or after `from`, else `count`. Eight bytes at a time: a byte's
// top bit survives when it was set or when adding 1 to the lower seven carries into it.
int64_t NextNanOrNegative(const std::byte* scales, int64_t from, int64_t count) {
  constexpr uint64_t kTop = 0x8080808080808080u;
  constexpr uint64_t kOne = 0x0101010101010101u;
  int64_t at = from;
  for (; at + 8 <= count; at += 8) {
    uint64_t word;
    std::memcpy(&word, scales + at, sizeof word);
    if (((((word & ~kTop) + kOne) | word) & kTop) != 0) break;
  }
  while (at < count && ByteAt(scales, at) < 0x7F) ++at;
  return at;
}

Status CheckNvfp4(const QuantView& view) {
  const int64_t columns = view.k / kNvfp4Block;
  const int64_t count = view.n * columns;
  for (int64_t at = NextNanOrNegative(view.scales, 0, count); at < count;
       at = NextNanOrNegative(view.scales, at + 1, count)) {
    const uint8_t scale = ByteAt(view.scales, at);
    constexpr int64_t kBlockBytes = kNvfp4Block / 2;
    if (scale == 0x7F && CodesAreZero(view.data + at * kBlockBytes, kBlockBytes)) continue;
    return Fail(Code::kCorruption,
                "element [{}, {}] is 0x{:02X} ({}), expected a positive E4M3 "
                "number, 0x00 to 0x7E",
                at / columns, at % columns, scale,
                scale == 0x7F ? "NaN, over codes that are not zero" : "its sign bit is set");
  }
  return {};
}

Status CheckMxfp4(const QuantView& view) {
  const int64_t columns = view.k / kMxfp4Block;
  const void* nan = std::memchr(view.scales, 0xFF, static_cast<size_t>(view.n * columns));
  if (nan == nullptr) return {};
  const int64_t at = static_cast<const std::byte*>(nan) - view.scales;
  return Fail(Code::kCorruption,
              "element [{}, {}] is 0xFF (NaN), expected an E8M0 number, 0x00 to "
              "0xFE",
              at / columns, at % columns);
}

float FloatScaleAt(const QuantView& view, int64_t index) {
  if (view.scale_dtype == DType::kF32) {
    float value;
    std::memcpy(&value, view.scales + index * 4, sizeof value);
    return value;
  }
  if (view.scale_dtype == DType::kU8 || view.scale_dtype == DType::kF8E8M0) {
    return E8M0ToFloat(ByteAt(view.scales, index));
  }
  uint16_t bits;
  std::memcpy(&bits, view.scales + index * 2, sizeof bits);
  return view.scale_dtype == DType::kBF16 ? Bf16ToFloat(bits) : F16ToFloat(bits);
}

Status CheckFloatScales(const QuantView& view, bool may_be_negative) {
  const int64_t columns = (view.k + view.scale_block_k - 1) / view.scale_block_k;
  const int64_t rows = (view.n + view.scale_block_n - 1) / view.scale_block_n;
  for (int64_t at = 0; at < rows * columns; ++at) {
    const float scale = FloatScaleAt(view, at);
    if (std::isfinite(scale) && (may_be_negative || scale >= 0)) continue;
    return Fail(Code::kCorruption, "element [{}, {}] is {}, expected finite{}", at / columns,
                at % columns, scale, may_be_negative ? "" : " and not negative");
  }
  return {};
}

bool IsUsable(float scale) { return std::isfinite(scale) && scale > 0; }

tl::unexpected<Error> FailScalar(float stored, bool is_divisor) {
  return Fail(Code::kCorruption, "{}{}, expected finite and > 0", stored,
              is_divisor ? " (a divisor)" : "");
}

}  // namespace

Status SetGlobalScale(float stored, bool is_divisor, QuantView* view) {
  view->global_scale = is_divisor ? 1.0f / stored : stored;
  if (IsUsable(view->global_scale)) return {};
  if (!CodesAreZero(view->data, view->data_bytes())) return FailScalar(stored, is_divisor);
  view->global_scale = 1.0f;
  return {};
}

Status SetInputScale(float stored, bool is_divisor, QuantView* view) {
  view->input_scale = is_divisor ? 1.0f / stored : stored;
  if (view->input_scale != 0 && !IsUsable(view->input_scale)) {
    return FailScalar(stored, is_divisor);
  }
  return {};
}

bool IsUnlikelyGlobalScale(const QuantView& view) {
  return view.format == WeightFormat::kNvfp4 &&
         (view.global_scale < 1e-9f || view.global_scale > 1);
}

Status CheckScaleValues(const QuantView& view) {
  switch (view.format) {
    case WeightFormat::kNvfp4:
      return CheckNvfp4(view);
    case WeightFormat::kMxfp4:
      return CheckMxfp4(view);
    case WeightFormat::kFp8:
      return CheckFloatScales(view, /*may_be_negative=*/false);
    case WeightFormat::kInt4:
    case WeightFormat::kInt8:
      return CheckFloatScales(view, /*may_be_negative=*/true);
    default:
      return {};
  }
}

}  // namespace nibble::formats
