// Checks on the values of a quantised linear: what names, shapes and dtypes cannot show.
#pragma once

#include "base/error.h"
#include "tensor/quant_view.h"

namespace nibble::formats {

// Block, channel or tensor scales that no producer means:
//   NVFP4  a set sign bit; NaN (0x7F), unless all 16 codes of the block are ±0, which some
//   exporters
//          wrote for zero blocks
//   MXFP4  NaN (0xFF)
//   FP8    NaN, infinite or negative
// The error says which element, its value and what was expected. One pass over the scales.
Status CheckScaleValues(const QuantView& view);

// Whether every E2M1 code of an NVFP4 or MXFP4 linear is ±0.
bool AllCodesAreZero(const QuantView& view);

}  // namespace nibble::formats
