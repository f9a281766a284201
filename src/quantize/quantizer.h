// QuantizeCheckpoint: any checkpoint in, an NVFP4 or BF16 folder out, as ModelOpt or
// compressed-tensors would write it.
//
// Without calibration data activations keep their precision, so the output is W4A16: no input
// scales, and the config says so. The destination appears whole or not at all.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "formats/checkpoint.h"
#include "quantize/policy.h"

namespace nibble::quantize {

enum class Format { kNvfp4, kBf16 };
enum class Method { kMax, kMse };
enum class Layout { kModelOpt, kCompressedTensors };

struct QuantizeOptions {
  Format format = Format::kNvfp4;
  Method method = Method::kMse;
  Layout layout = Layout::kModelOpt;
  QuantizePolicy policy;
  ThreadPool* pool = nullptr;       // required
  bool replace = false;             // an existing destination
  bool quiet = false;               // no progress bar
  std::function<bool()> cancelled;  // asked between tensors; true ends with kCancelled
};

struct TensorReport {
  std::string module;
  int64_t n = 0;
  int64_t k = 0;
  double relative_error = 0;  // root mean square of the error over that of the weight
  double largest_error = 0;   // over the largest magnitude of the weight
};

struct QuantizeReport {
  std::vector<TensorReport> quantised;
  struct Kept {
    std::string module;
    std::string reason;
  };
  std::vector<Kept> kept;  // matrices that stay as they are
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;

  double mean_relative_error() const;  // weighted by elements
  std::string ToString() const;        // a table for people
};

Result<QuantizeReport> QuantizeCheckpoint(const formats::Checkpoint& source,
                                          const std::string& destination,
                                          const QuantizeOptions& options);

}  // namespace nibble::quantize
