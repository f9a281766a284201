// A picture of measured linear kernels under their roofs: one chart per kernel, operations per
// second over operations per byte of weight, both logarithmic. Pure.
#pragma once

#include <string>

#include "kernels/benchmark_linear.h"

namespace nibble::apps {

// An SVG document. `machine` stands in its title.
std::string RooflineSvg(const kernels::LinearBenchReport& report, const std::string& machine);

}  // namespace nibble::apps
