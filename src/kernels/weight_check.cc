#include "kernels/weight_check.h"

#include <cmath>

#include "numerics/e4m3.h"
#include "numerics/e8m0.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels {
namespace {

// FP8 scale columns must end on the 32 values along K that kernels sum up before they scale.
constexpr int64_t kScaleColumnMultiple = 32;

// E8M0 code of 2^100: beyond it a block's sum of products could leave FP32.
constexpr uint8_t kMxfp4MaxScale = 227;

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

Status CheckPart(const QuantView& view, const QuantView& first) {
  if (view.n <= 0 || view.k <= 0) {
    return Fail(Code::kInvalidArgument, "a weight of {} x {} is empty", view.n, view.k);
  }
  if (view.k != first.k || view.format != first.format) {
    return Fail(Code::kInvalidArgument,
                "stacked weights differ: {} with K = {}, the first is {} with K = {}",
                WeightFormatName(view.format), view.k, WeightFormatName(first.format), first.k);
  }
  const int64_t block = view.format == WeightFormat::kNvfp4   ? kNvfp4Block
                        : view.format == WeightFormat::kMxfp4 ? kMxfp4Block
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
  if (view.format == WeightFormat::kFp8 && view.scale_block_k < view.k &&
      view.scale_block_k % kScaleColumnMultiple != 0) {
    return Fail(Code::kUnsupported,
                "FP8 scales of {} columns each: must be a multiple of {}, or one per row",
                view.scale_block_k, kScaleColumnMultiple);
  }
  return {};
}

}  // namespace

Status CheckBlockScales(const QuantView& view, int64_t row_begin, int64_t row_end) {
  const bool nvfp4 = view.format == WeightFormat::kNvfp4;
  if (!nvfp4 && view.format != WeightFormat::kMxfp4) return {};
  const int64_t blocks = view.k / (nvfp4 ? kNvfp4Block : kMxfp4Block);
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const auto scale = std::to_integer<uint8_t>(view.scales[row * blocks + block]);
      if (nvfp4 && scale < 0x7F) continue;
      if (!nvfp4 && scale <= kMxfp4MaxScale) continue;
      NIBBLE_TRY(nvfp4 ? CheckNvfp4Scale(view, row, block, scale)
                       : CheckMxfp4Scale(view, row, block, scale));
    }
  }
  return {};
}

Status CheckWeight(std::span<const QuantView> parts) {
  if (parts.empty()) return Fail(Code::kInvalidArgument, "a weight without parts");
  for (size_t i = 0; i < parts.size(); ++i) {
    if (Status status = CheckPart(parts[i], parts[0]); !status) {
      if (parts.size() == 1) return status;
      return tl::unexpected<Error>(status.error().Context(fmt::format("part {}", i)));
    }
  }
  return {};
}

ActivationFormat EffectiveActivations(WeightFormat format, ActivationFormat wanted) {
  const bool has_codes = format == WeightFormat::kNvfp4 || format == WeightFormat::kMxfp4;
  return has_codes ? wanted : ActivationFormat::kBf16;
}

}  // namespace nibble::kernels
