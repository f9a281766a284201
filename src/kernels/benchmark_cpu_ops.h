// Benchmarks of what a CPU does beside plain linears: experts and attention, each beside the time
// that the machine's ceilings of the same run allow.
//
// Experts: 64 of Qwen3-30B-A3B's size, 8 per token, chosen evenly. Few tokens should take as long
// as it takes to read the experts they hit, once for the whole batch; many, as long as the linears
// of the same experts with as many tokens each. Attention: one token behind a context, in layers
// that are read from memory. It should take as long as it takes to read keys and values, and to
// multiply each by the heads that share it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/ops.h"

namespace nibble::kernels {

struct CpuOpMeasurement {
  std::string op;     // "moe", "attention"
  std::string shape;  // "64 x 2048 x 768, 8 each"
  int threads = 1;
  int64_t m = 0;        // tokens
  int64_t context = 0;  // of attention
  double seconds = 0;
  double bytes = 0;          // of weights or cache that must be read
  double ideal_seconds = 0;  // what the ceilings allow
  double goal = 0;           // ideal / seconds should be at least this

  double reached() const { return ideal_seconds / seconds; }
  bool met() const { return reached() >= goal; }
};

using OnCpuOp = std::function<void(const CpuOpMeasurement&)>;

Status BenchCpuExperts(const OpTable& ops, ThreadPool& pool, const OnCpuOp& on_measurement);

// multiply_rate: floating-point operations per second that the threads reach in registers; 0: not
// known, and left out of what is allowed.
Status BenchCpuAttention(const OpTable& ops, ThreadPool& pool, double multiply_rate,
                         const OnCpuOp& on_measurement);

std::string FormatMeasurement(const CpuOpMeasurement& measurement);

}  // namespace nibble::kernels
