// What a quantisation did: per linear, and in sum.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quantize/plan.h"

namespace nibble::quantize {

struct TensorReport {
  std::string module;
  int64_t n = 0;
  int64_t k = 0;
  double relative_error = 0;  // root mean square of the error over that of the weight
  double largest_error = 0;   // over the largest magnitude of the weight
  // What else is to know: "smoothed", "exact from mxfp4", "max: the search erred more". May be "".
  std::string note;
};

struct QuantizeReport {
  std::vector<TensorReport> quantised;
  std::vector<Kept> kept;             // matrices that stay as they are
  int64_t copied = 0;                 // linears that were in the target format already
  int64_t widened = 0;                // linears that became BF16
  int64_t inexact_tensor_scales = 0;  // copied, but 1/scale has no exact FP32 divisor
  int64_t borrowed_input_scales = 0;  // of experts that the calibration never reached
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;

  double mean_relative_error() const;  // weighted by elements
  std::string ToString() const;        // a table for people
};

}  // namespace nibble::quantize
