// Functions of the reference's ops, in double precision.
#pragma once

#include <cmath>

namespace nibble::kernels::ref {

inline double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline double Silu(double x) { return x * Sigmoid(x); }
inline double Softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

}  // namespace nibble::kernels::ref
