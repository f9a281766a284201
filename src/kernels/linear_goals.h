// What the CPU's linear kernels should reach, as shares of ceilings that the benchmark measures in
// the same run. Pure.
#pragma once

#include <span>
#include <vector>

#include "kernels/benchmark_linear.h"

namespace nibble::kernels {

// The goals that apply to a measurement, with what it reached. `earlier` holds the measurements
// made before it, of the same run: times of one token and of one thread are looked up there.
std::vector<LinearVerdict> VerdictsOf(const LinearMeasurement& measurement,
                                      const LinearProbes& probes, bool wide_vectors,
                                      std::span<const LinearMeasurement> earlier);

}  // namespace nibble::kernels
