#include "kernels/weight_check.h"

#include <algorithm>
#include <cmath>

#include "numerics/e4m3.h"
#include "numerics/e8m0.h"
#include "numerics/fp8_activations.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels {
namespace {

// Scale columns must end on the 32 values along K that kernels sum up before they scale.
constexpr int64_t kScaleColumnMultiple = 32;

// Beyond it a block's sum of products could leave FP32; and its E8M0 code.
constexpr float kMaxScale = 0x1p100f;
constexpr uint8_t kMxfp4MaxScale = 227;

constexpr int kInt4MaxZero = 16;

bool IsInteger(WeightFormat format) {
  return format == WeightFormat::kInt4 || format == WeightFormat::kInt8;
}

bool IsZeroBlock(const QuantView& view, int64_t row, int64_t block, int block_size) {
  const std::byte* codes = view.data + row * (view.k / 2) + block * (block_size / 2);
  for (int i = 0; i < block_size / 2; ++i) {
    if ((std::to_integer<uint8_t>(codes[i]) & 0x77u) != 0) return false;
  }
  return true;
}

Status CheckNvfp4Scale(const QuantView& view, int64_t row, int64_t block, uint8_t scale) {
  if (E4M3IsNan(scale)) {
    if (IsZeroBlock(view, row, block, kNvfp4Block)) return {};
    return Fail(Code::kCorruption,
                "row {}, block {}: the NVFP4 scale 0x{:02X} is NaN over non-zero weights; the "
                "checkpoint is damaged",
                row, block, scale);
  }
  if ((scale & 0x80u) != 0) {
    return Fail(Code::kCorruption,
                "row {}, block {}: the NVFP4 scale 0x{:02X} has its sign bit set; legal scales are "
                "0x00..0x7E",
                row, block, scale);
  }
  return {};
}

Status CheckMxfp4Scale(const QuantView& view, int64_t row, int64_t block, uint8_t scale) {
  if (scale == 0xFF) {
    return Fail(Code::kCorruption, "row {}, block {}: the MXFP4 scale 0xFF is NaN", row, block);
  }
  if (scale > kMxfp4MaxScale && !IsZeroBlock(view, row, block, kMxfp4Block)) {
    return Fail(Code::kCorruption,
                "row {}, block {}: the MXFP4 scale 0x{:02X} is above 2^100 (0x{:02X})", row, block,
                scale, kMxfp4MaxScale);
  }
  return {};
}

// A loop that compilers turn into vector maxima: almost every row is legal.
uint8_t Largest(const std::byte* codes, int64_t count) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < count; ++i)
    largest = std::max(largest, std::to_integer<uint8_t>(codes[i]));
  return largest;
}

// Scales of FP8, INT4 and INT8, and the integers' zero points.
Status CheckWideScales(const QuantView& view, int64_t row) {
  const int64_t columns = (view.k + view.scale_block_k - 1) / view.scale_block_k;
  for (int64_t column = 0; column < columns; ++column) {
    const float scale = BlockScale(view, row, column * view.scale_block_k);
    if (!(std::fabs(scale) <= kMaxScale)) {  // NaN, too
      return Fail(Code::kCorruption,
                  "row {}, block {}: the {} scale {} must be finite and at most 2^100 in magnitude",
                  row, column, WeightFormatName(view.format), scale);
    }
    if (view.format != WeightFormat::kInt4 || view.zeros == nullptr) continue;
    if (const int zero = view.zeros[row * columns + column]; zero > kInt4MaxZero) {
      return Fail(Code::kCorruption, "row {}, block {}: the INT4 zero point {} is not in 0..{}",
                  row, column, zero, kInt4MaxZero);
    }
  }
  return {};
}

Status CheckScaleColumns(const QuantView& view) {
  const std::string_view format = WeightFormatName(view.format);
  if (view.scale_block_k <= 0 || view.scale_block_n <= 0) {
    return Fail(Code::kInvalidArgument, "{} scales of {} rows and {} columns each", format,
                view.scale_block_n, view.scale_block_k);
  }
  if (view.scale_block_k < view.k && view.scale_block_k % kScaleColumnMultiple != 0) {
    return Fail(Code::kUnsupported,
                "{} scales of {} columns each: must be a multiple of {}, or one per row", format,
                view.scale_block_k, kScaleColumnMultiple);
  }
  const DType dtype = view.scale_dtype;
  if (IsInteger(view.format) &&
      (view.scale_block_n != 1 ||
       (dtype != DType::kBF16 && dtype != DType::kF16 && dtype != DType::kF32))) {
    return Fail(Code::kUnsupported,
                "{} scales of {} rows each in {}: must be of one row, in BF16, F16 or F32", format,
                view.scale_block_n, DTypeName(dtype));
  }
  return {};
}

// What the activations go through before the product.
Status CheckActivations(const QuantView& view) {
  for (int64_t i = 0; view.column_order != nullptr && i < view.k; ++i) {
    if (const int32_t column = view.column_order[i]; column < 0 || column >= view.k) {
      return Fail(Code::kCorruption, "column order {}: {} is not in 0..{}", i, column, view.k - 1);
    }
  }
  for (int64_t i = 0; view.input_multiplier != nullptr && i < view.k; ++i) {
    if (!std::isfinite(view.input_multiplier[i])) {
      return Fail(Code::kCorruption, "input multiplier {}: {} is not finite", i,
                  view.input_multiplier[i]);
    }
  }
  return {};
}

Status CheckPart(const QuantView& view, const QuantView& first, bool gather_rows) {
  if (view.n <= 0 || view.k <= 0) {
    return Fail(Code::kInvalidArgument, "a weight of {} x {} is empty", view.n, view.k);
  }
  if (view.k != first.k || view.format != first.format) {
    return Fail(Code::kInvalidArgument,
                "stacked weights differ: {} with K = {}, the first is {} with K = {}",
                WeightFormatName(view.format), view.k, WeightFormatName(first.format), first.k);
  }
  if (!SameActivations(view, first)) {
    return Fail(Code::kInvalidArgument,
                "stacked weights differ in their column order or input multiplier: pack them "
                "separately");
  }
  if (gather_rows && (view.column_order != nullptr || view.input_multiplier != nullptr)) {
    return Fail(Code::kUnsupported,
                "an embedding with a column order or an input multiplier: its rows are not what "
                "the model looks up");
  }
  const int64_t block = view.format == WeightFormat::kNvfp4   ? kNvfp4Block
                        : view.format == WeightFormat::kMxfp4 ? kMxfp4Block
                        : view.format == WeightFormat::kInt4  ? 2
                                                              : 1;
  if (view.k % block != 0) {
    return Fail(Code::kInvalidArgument, "K = {} is not a multiple of the {} block of {}", view.k,
                WeightFormatName(view.format), block);
  }
  if (view.format == WeightFormat::kNvfp4 &&
      !(std::isfinite(view.global_scale) && view.global_scale >= 0.0f)) {
    return Fail(Code::kCorruption, "tensor scale {}: must be finite and not negative",
                view.global_scale);
  }
  if (view.format == WeightFormat::kFp8 || IsInteger(view.format)) {
    NIBBLE_TRY(CheckScaleColumns(view));
  }
  // Equal to the first's: what other parts hold was looked at with it.
  return &view == &first ? CheckActivations(view) : Status();
}

}  // namespace

Status CheckBlockScales(const QuantView& view, int64_t row_begin, int64_t row_end) {
  if (view.format == WeightFormat::kFp8 || IsInteger(view.format)) {
    for (int64_t row = row_begin; row < row_end; ++row) NIBBLE_TRY(CheckWideScales(view, row));
    return {};
  }
  const bool nvfp4 = view.format == WeightFormat::kNvfp4;
  if (!nvfp4 && view.format != WeightFormat::kMxfp4) return {};
  const int64_t blocks = view.k / (nvfp4 ? kNvfp4Block : kMxfp4Block);
  const uint8_t largest = nvfp4 ? 0x7E : kMxfp4MaxScale;
  for (int64_t row = row_begin; row < row_end; ++row) {
    if (Largest(view.scales + row * blocks, blocks) <= largest) continue;
    for (int64_t block = 0; block < blocks; ++block) {
      const auto scale = std::to_integer<uint8_t>(view.scales[row * blocks + block]);
      if (scale <= largest) continue;
      NIBBLE_TRY(nvfp4 ? CheckNvfp4Scale(view, row, block, scale)
                       : CheckMxfp4Scale(view, row, block, scale));
    }
  }
  return {};
}

Status CheckWeight(const PackParams& params) {
  const std::span<const QuantView> parts = params.parts;
  if (parts.empty()) return Fail(Code::kInvalidArgument, "a weight without parts");
  for (size_t i = 0; i < parts.size(); ++i) {
    if (Status status = CheckPart(parts[i], parts[0], params.gather_rows); !status) {
      if (parts.size() == 1) return status;
      return tl::unexpected<Error>(status.error().Context(fmt::format("part {}", i)));
    }
  }
  return {};
}

std::string_view ActivationFormatName(ActivationFormat format) {
  switch (format) {
    case ActivationFormat::kBf16:
      return "bf16";
    case ActivationFormat::kInt8:
      return "int8";
    case ActivationFormat::kInt16:
      return "int16";
    case ActivationFormat::kRequantized:
      return "requantized";
  }
  return "";
}

ActivationFormat EffectiveActivations(WeightFormat format, ActivationFormat wanted) {
  const bool has_codes = format == WeightFormat::kNvfp4 || format == WeightFormat::kMxfp4;
  if (has_codes) return wanted;
  const bool int8 = wanted == ActivationFormat::kInt8 || wanted == ActivationFormat::kRequantized;
  if (IsInteger(format) && int8) return ActivationFormat::kInt8;
  return ActivationFormat::kBf16;
}

float StackedInputScale(std::span<const QuantView> parts) {
  float largest = 0.0f;
  for (const QuantView& part : parts) {
    if (part.format != WeightFormat::kNvfp4 || !(part.input_scale > 0.0f)) return 0.0f;
    largest = std::max(largest, part.input_scale);
  }
  return largest;
}

Fp8Activations Fp8ActivationsOf(std::span<const QuantView> parts) {
  Fp8Activations x = {.group = parts[0].k};
  bool all_have_scales = true;
  for (const QuantView& part : parts) {
    if (part.format != WeightFormat::kFp8 || part.scale_dtype == DType::kF8E8M0) return {};
    if (part.column_order != nullptr || part.input_multiplier != nullptr) return {};
    if (part.scale_block_k < part.k) {
      if (part.scale_block_k != kFp8GroupColumns) return {};
      x.group = kFp8GroupColumns;
    }
    all_have_scales = all_have_scales && part.input_scale > 0.0f;
    x.scale = std::max(x.scale, part.input_scale);
  }
  if (!all_have_scales) x.scale = 0.0f;
  return x;
}

}  // namespace nibble::kernels
