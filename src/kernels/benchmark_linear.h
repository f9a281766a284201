// Benchmarks of the CPU's linear kernels beside the ceilings of the machine that runs them: read
// bandwidth over the very bytes of the weight, and multiply-adds in registers.
//
// With one thread times are CPU times of the thread, so that other processes disturb them less;
// with more they are wall times. Every figure is the best of several repetitions, the probes' too.
// Figures that have a goal carry it: a share of a ceiling measured in the same run.
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
  std::vector<int> threads = {1};
  std::vector<std::string> kernels;  // "nvfp4 x int8", spaces optional; empty: all
  std::vector<int64_t> tokens = {1, 4, 16, 128, 512};
  // Few tokens stream the weight from memory: it should be larger than the caches. 0: twice the
  // last-level cache.
  int64_t stream_bytes = 0;
  int64_t batch_n = 8192;
  int64_t k = 4096;
};

// What a figure is compared with.
enum class LinearCeiling : uint8_t { kNone, kRead, kMultiply, kInt8, kTimeOfOneToken, kOneThread };

// A figure as a multiple of its ceiling, and what it should be: at least the goal, of
// kTimeOfOneToken at most.
struct LinearVerdict {
  LinearCeiling ceiling = LinearCeiling::kNone;
  double goal = 0;
  double reached = 0;
  bool met() const {
    return ceiling == LinearCeiling::kTimeOfOneToken ? reached <= goal : reached >= goal;
  }
};

struct LinearMeasurement {
  std::string kernel;  // "nvfp4 x int8"
  int threads = 1;
  int64_t n = 0;
  int64_t k = 0;
  int64_t m = 0;
  int64_t weight_bytes = 0;
  double seconds = 0;
  double bytes_per_second = 0;  // of weights
  double ops_per_second = 0;    // a multiplication and an addition are two
  double read = 0;              // bytes/s of the read probe over this weight's buffer
  double peak = 0;              // ops/s of the activation format's probe; 0 where there is none
  std::vector<LinearVerdict> verdicts;

  double read_share() const { return bytes_per_second / read; }
  double compute_share() const { return peak > 0 ? ops_per_second / peak : 0; }
};

// The multiply probes of one number of threads, in operations per second; 0 where the variant has
// no such kernel.
struct LinearProbes {
  int threads = 1;
  double int8 = 0;
  double int16 = 0;
  double bf16 = 0;
  double best_int8 = 0;  // of this processor's best variant
};

struct LinearBenchReport {
  std::string variant;
  std::vector<LinearProbes> probes;
  std::vector<LinearMeasurement> measurements;
};

// Calls `on_measurement` after each one. Errors: an unknown variant or kernel, or no memory for the
// weights.
Result<LinearBenchReport> BenchLinear(
    const LinearBenchOptions& options,
    const std::function<void(const LinearMeasurement&)>& on_measurement = {});

// One line: "nvfp4 x int8  M=1    9.1 GB/s (96 % of read)  32 GOP/s (3 % of peak)  96 % of read,
// goal 88: met".
std::string FormatMeasurement(const LinearMeasurement& measurement);

// "88 % of read"
std::string_view LinearCeilingName(LinearCeiling ceiling);

}  // namespace nibble::kernels
