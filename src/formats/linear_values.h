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
//   INT4, INT8  NaN or infinite (some producers let the scale carry the sign); [row, group] is of
//          the view
// The error says which element, its value and what was expected. One pass over the scales.
Status CheckScaleValues(const QuantView& view);

// Sets the per-tensor multiplier of an NVFP4 linear whose codes are set. Finite and > 0, or
// anything over codes that are all ±0: exporters divide by a maximum of zero there.
Status SetGlobalScale(float stored, bool is_divisor, QuantView* view);

// Sets the activations' multiplier: finite and > 0; 0 stands for an absent one (a linear that
// calibration never reached, such as an expert that no sample chose).
Status SetInputScale(float stored, bool is_divisor, QuantView* view);

// Whether an NVFP4 linear's multiplier is far from what trained weights have (a largest magnitude
// of 1e-3 to 1e2, and the multiplier is 2688 times less). An inverted one is far above.
bool IsUnlikelyGlobalScale(const QuantView& view);

}  // namespace nibble::formats
