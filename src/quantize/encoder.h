// One row of a weight to codes and scales, per format and method; with what readers will make of
// them, so that every error is measured on the bytes that are written.
//
//   format  method "max"                                  searched methods
//   NVFP4   ModelOpt's bytes (numerics/nvfp4.h)           kMse: least error of all 126 block scales
//                                                         kFourOverSix: the block's largest value
//                                                         becomes 6 or 4, whichever errs less
//   MXFP4   the exponent rule of the layout's producer    least error of the neighbouring exponents
//   INT4    groups of columns, symmetric: amax / 7.5      least error of 11 shrunk scales
//   FP8     one scale per row: amax / 448                 (no search: nothing to gain)
//
// Thread-safety: const after construction.
#pragma once

#include <cstdint>
#include <memory>

namespace nibble::quantize {

enum class Format { kNvfp4, kMxfp4, kInt4, kFp8, kBf16 };
enum class Method { kMax, kMse, kFourOverSix };
enum class Layout { kModelOpt, kCompressedTensors };

// NVFP4's tensor scale is amax / 2688: ModelOpt's result differs in the last bit between a GPU,
// which multiplies by the reciprocal, and a CPU.
enum class Rounding { kCuda, kCpu };

struct EncoderSpec {
  Format format = Format::kNvfp4;
  Method method = Method::kMse;
  Layout layout = Layout::kModelOpt;
  float tensor_scale = 1.0f;  // NVFP4
  int64_t k = 0;
  int64_t group = 128;  // INT4: columns per scale, divides K
};

class Encoder {
 public:
  virtual ~Encoder() = default;

  virtual int64_t code_bytes() const = 0;   // per row
  virtual int64_t scale_bytes() const = 0;  // per row

  // row (K), finite. Writes codes, scales and, into back (K), the row as readers see it.
  virtual void EncodeRow(const float* row, uint8_t* codes, uint8_t* scales, float* back) const = 0;
};

// Not for kBf16.
std::unique_ptr<Encoder> MakeEncoder(const EncoderSpec& spec);

// Columns that a row must be a multiple of: 16, 32, 32, 1, 1.
int64_t ColumnMultiple(Format format);

// NVFP4's tensor scale for a largest magnitude. kFourOverSix leaves room for scales 1.5 times as
// large; the compressed-tensors layout stores a divisor.
float TensorScale(float amax, Method method, Layout layout, Rounding rounding);

// The divisor that compressed-tensors' layout stores for a tensor scale: 1 / it, or a neighbour
// whose reciprocal, as readers take it, is the tensor scale. 0 if there is none: the tensor scale
// cannot be stored exactly.
float ExactDivisor(float tensor_scale);

}  // namespace nibble::quantize
