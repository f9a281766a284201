// What every backend requires of a weight before it packs it. Shapes against the model's config are
// the loader's business; this is about what the arithmetic can represent.
#pragma once

#include "base/error.h"
#include "kernels/ops.h"
#include "tensor/quant_view.h"

namespace nibble::kernels {

// Equal K, format, column order and input multiplier of all parts, K a multiple of the format's
// block, tensor scales finite and not negative, scale columns of FP8, INT4 and INT8 of a multiple
// of 32 or one for the whole row, column orders within K, multipliers finite; neither of the two in
// a weight for gather_rows. Reads no codes and block scales.
Status CheckWeight(const PackParams& params);

// Block scales of rows [begin, end) of one part; apart, so that packing can spread it over threads:
//  - NVFP4: no sign; NaN only over a block of zeros (some exporters wrote that);
//  - MXFP4: not NaN, and at most 2^100 unless the block is zero;
//  - FP8, INT4, INT8: finite and at most 2^100 in magnitude;
//  - INT4: zero points up to 16, as GPTQ's off-by-one makes of 15.
// An error names row, block and value.
Status CheckBlockScales(const QuantView& view, int64_t row_begin, int64_t row_end);

// The activation format that a weight gets when `wanted` is asked for: int8 only for
// 4-bit and integer codes.
ActivationFormat EffectiveActivations(WeightFormat format, ActivationFormat wanted);

// The largest input_scale of stacked NVFP4 parts; 0 where one has none.
float StackedInputScale(std::span<const QuantView> parts);

// PackedWeight::fp8. linear_fp8 takes FP8 weights that take x as it is and have a scale per tensor,
// per row or per 128 columns, not E8M0. x has a scale of its own for as many columns.
Fp8Activations Fp8ActivationsOf(std::span<const QuantView> parts);

}  // namespace nibble::kernels
