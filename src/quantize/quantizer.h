// QuantizeCheckpoint: any checkpoint in, a quantised or BF16 folder out, as ModelOpt or
// compressed-tensors would write it.
//
// Streams group by group (linears that share a tensor scale): every tensor is read once, encoded on
// the pool and written to its place; what has been read is let go. Without calibration data
// activations keep their precision, so the output is W4A16: no input scales, and the config says
// so. The destination appears whole or not at all, and no file is valid before it is complete.
#pragma once

#include <functional>
#include <string>

#include "base/error.h"
#include "base/thread_pool.h"
#include "formats/checkpoint.h"
#include "quantize/calibration.h"
#include "quantize/encoder.h"
#include "quantize/policy.h"
#include "quantize/report.h"

namespace nibble::quantize {

struct QuantizeOptions {
  Format format = Format::kNvfp4;
  Method method = Method::kMse;
  Layout layout = Layout::kModelOpt;  // INT4 and FP8 exist in kCompressedTensors alone
  Rounding rounding = Rounding::kCuda;
  QuantizePolicy policy;
  // NVFP4: activation scales for what the calibration has seen; an expert that it has not takes the
  // largest of the layer's others. Null: weights only.
  const Calibration* calibration = nullptr;
  // NVFP4 in ModelOpt's layout, with a calibration: smooth where it lowers the output error. Not
  // routed experts.
  bool smoothing = false;
  ThreadPool* pool = nullptr;       // required
  bool replace = false;             // an existing destination
  bool quiet = false;               // no progress bar
  std::function<bool()> cancelled;  // asked between tensors; true ends with kCancelled
};

Result<QuantizeReport> QuantizeCheckpoint(const formats::Checkpoint& source,
                                          const std::string& destination,
                                          const QuantizeOptions& options);

}  // namespace nibble::quantize
