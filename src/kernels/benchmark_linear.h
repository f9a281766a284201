// Benchmarks of the CPU's linear kernels beside the ceilings of the machine that runs them: read
// bandwidth over the very bytes of the weight, and multiply-adds in registers.
//
// With one thread times are CPU times of the thread, so that other processes disturb them less;
// with more they are wall times. Every figure is the best of several repetitions, the probes' too.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/ops.h"

namespace nibble::kernels {

struct LinearBenchOptions {
  std::string variant;  // "": the best of this processor
  int threads = 1;
  // One token streams from memory: larger than the caches. More tokens need no such size.
  int64_t stream_n = 65536;
  int64_t batch_n = 8192;
  int64_t k = 4096;
  std::vector<int64_t> tokens = {1, 4, 16, 128, 512};
};

struct LinearMeasurement {
  std::string kernel;  // "nvfp4 x int8"
  int64_t n = 0;
  int64_t k = 0;
  int64_t m = 0;
  double seconds = 0;
  double bytes_per_second = 0;  // of weights
  double ops_per_second = 0;    // a multiplication and an addition are two
  double read_share = 0;        // of the read probe over this weight's buffer
  double compute_share = 0;     // of the activation format's probe; 0 where there is none
};

struct LinearBenchReport {
  std::string variant;
  int threads = 1;
  double int8_ops_per_second = 0;  // probes; 0 where the processor has no such kernel
  double int16_ops_per_second = 0;
  double bf16_ops_per_second = 0;
  std::vector<LinearMeasurement> measurements;
};

// Calls `on_measurement` after each one. Errors: an unknown variant, or no memory for the weights.
Result<LinearBenchReport> BenchLinear(
    const LinearBenchOptions& options,
    const std::function<void(const LinearMeasurement&)>& on_measurement = {});

// One line: "nvfp4 x int8  M=1    9.1 GB/s (96 % of read)  32 GOP/s (3 % of peak)".
std::string FormatMeasurement(const LinearMeasurement& measurement);

}  // namespace nibble::kernels
