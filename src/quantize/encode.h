// A whole weight through an encoder, in one parallel pass that also measures the error.
// Results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "quantize/encoder.h"
#include "quantize/weight_rows.h"

namespace nibble::quantize {

struct EncodeError {
  double squared = 0;  // Σ (w - ŵ)²
  double power = 0;    // Σ w²
  double largest = 0;  // max |w - ŵ|
  float amax = 0;      // max |w|

  double relative() const;          // root of squared / power, 0 for a zero weight
  double largest_relative() const;  // largest / amax
};

struct Encoded {
  std::vector<uint8_t> codes;
  std::vector<uint8_t> scales;
  EncodeError error;
};

// pre_quant_scale: (K) the inputs' multipliers, which the weight is divided by; or empty.
Encoded EncodeRows(const WeightRows& rows, const Encoder& encoder,
                   std::span<const float> pre_quant_scale, ThreadPool& pool);

// MXFP4 to NVFP4. Codes stay; a block's exponent e becomes the block scale 2^(e - top + 8) under
// the tensor scale 2^(top - 8), which E4M3 holds exactly down to 17 below the top: `top` is the
// largest exponent of a block that is not zero, over all weights that share the tensor scale.
// Blocks further below are rounded again.
struct FromMxfp4 {
  Encoded encoded;
  float tensor_scale = 1.0f;
  int64_t rounded_blocks = 0;
};
int TopExponent(const QuantView& view);  // E8M0 code; 0 if all blocks are zero
FromMxfp4 EncodeFromMxfp4(const QuantView& view, int top, ThreadPool& pool);

}  // namespace nibble::quantize
