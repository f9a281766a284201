// What every backend requires of a weight before it packs it. Shapes against the model's config are
// the loader's business; this is about what the arithmetic can represent.
#pragma once

#include <span>

#include "base/error.h"
#include "kernels/ops.h"
#include "tensor/quant_view.h"

namespace nibble::kernels {

// Equal K and format of all parts, K a multiple of the format's block, tensor scales finite and not
// negative, FP8 scale columns of a multiple of 32 or one for the whole row. Reads no tensor data.
Status CheckWeight(std::span<const QuantView> parts);

// Block scales of rows [begin, end) of one part; apart, so that packing can spread it over threads:
//  - NVFP4: no sign; NaN only over a block of zeros (some exporters wrote that);
//  - MXFP4: not NaN, and at most 2^100 unless the block is zero.
// An error names row, block and value.
Status CheckBlockScales(const QuantView& view, int64_t row_begin, int64_t row_end);

// The activation format that a weight gets when `wanted` is asked for: int8 only for 4-bit codes.
ActivationFormat EffectiveActivations(WeightFormat format, ActivationFormat wanted);

}  // namespace nibble::kernels
