// Benchmarks of a device's ops: chains of dependent launches, recorded and replayed, over weights
// or caches much larger than any cache of the device, beside a kernel that only reads the same
// bytes in such a chain.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/ops.h"

namespace nibble::kernels {

// What can be measured: "linear", "gate_up", which is a linear with silu behind it, and
// "linear_fp8" of shapes "N x K"; "moe" of "30b" and "next", the
// blocks of Qwen3-30B-A3B and Qwen3-Next-80B-A3B with even choices of experts; "attention" of one
// token per sequence, shapes "Hq x Hk x Dh", FP8 keys and values.
struct OpBenchOptions {
  std::vector<std::string> ops = {"linear", "moe", "attention"};
  std::vector<std::string> shapes;  // "4096x14336"; empty: a few usual ones of each op
  std::vector<int64_t> tokens = {1, 8, 16, 64, 512, 2048};
  std::vector<int64_t> contexts = {1024, 32768};  // of attention
  WeightFormat format = WeightFormat::kNvfp4;
};

struct OpMeasurement {
  std::string op;
  std::string shape;
  int64_t m = 0;            // tokens
  int64_t context = 0;      // of attention
  double seconds = 0;       // per launch
  double bytes = 0;         // of weights or cache that a launch reads
  double flops = 0;         // a multiplication and an addition are two
  double read_seconds = 0;  // of a kernel that only reads these bytes; 0: not known
  double bf16_seconds = 0;  // of cuBLASLt with BF16 weights; 0: not known, or not of its kind
};

// Calls `on_measurement` after each one. kInvalidArgument: an op or a shape that is not known.
Status BenchOps(const OpTable& ops, const OpBenchOptions& options,
                const std::function<void(const OpMeasurement&)>& on_measurement);

// One line; ceiling: bytes per second.
std::string FormatMeasurement(const OpMeasurement& measurement, double ceiling);

// Seconds per launch, in a chain of dependent ones, of a kernel that reads `bytes` from memory and
// does nothing else. 0 without CUDA.
double CudaReadSeconds(int64_t bytes);

// Seconds of (M, K) times (N, K) transposed in BF16 by cuBLASLt, the best of its algorithms; the
// weight may be cached. 0 without CUDA, without that library, or without the memory.
double CudaBf16MatmulSeconds(int64_t m, int64_t n, int64_t k);

}  // namespace nibble::kernels
