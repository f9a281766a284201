// How far a backend may be from ref/, per op: declared here and nowhere else. Derived from FP32
// accumulation against the oracle's double; what is not listed is compared bit for bit.
#pragma once

namespace nibble::kernels {

// |y - ref| <= this * sum |x * w| over K, for FP32 outputs. Chains have at most 32 + K/16 roundings
// of 2^-24 relative to partial sums, which random signs keep well below the sum of magnitudes. BF16
// outputs add half a unit of BF16.
inline constexpr float kLinearTolerance = 0x1p-19f;

}  // namespace nibble::kernels
