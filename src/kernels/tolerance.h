// How far a backend may be from ref/, per op: declared here and nowhere else. Derived from FP32
// accumulation against the oracle's double; what is not listed is compared bit for bit.
#pragma once

namespace nibble::kernels {

// |y - ref| <= this * sum |x * w| over K, for FP32 outputs. Chains have at most 32 + K/16 roundings
// of 2^-24 relative to partial sums, which random signs keep well below the sum of magnitudes. BF16
// outputs add half a unit of BF16.
inline constexpr float kLinearTolerance = 0x1p-19f;

// The same for linear_fp8: tensor cores add products of E4M3 with about 14 bits, in chains of 128.
inline constexpr float kLinearFp8Tolerance = 0x1p-11f;

// The other ops: |y - ref| <= relative * |ref| + absolute * (largest |ref| of the row). BF16
// results differ by one unit in the last place (at most 2^-7 relative) where two FP32 sums in
// another order fall on different sides of a rounding boundary; a second rounding doubles that.
struct Tolerance {
  float relative;
  float absolute;
};

inline constexpr Tolerance kExact = {0.0f, 0.0f};
// The sum of squares; kRoundThenScale rounds twice.
inline constexpr Tolerance kRmsNormTolerance = {0x1p-6f, 0.0f};
// A sigmoid by another exponential, then a product.
inline constexpr Tolerance kActivationTolerance = {0x1p-6f, 0x1p-100f};
// With q/k norm: values off by one unit, then sums that may cancel. Without: exact.
inline constexpr Tolerance kRopeNormTolerance = {0x1p-6f, 0x1p-7f};
// The same in an FP8 cache: one unit of E4M3.
inline constexpr Tolerance kRopeNormFp8Tolerance = {0x1p-3f, 0x1p-6f};
// In an NVFP4 cache such a unit may change a block's scale by a step, and with it codes: two steps
// of E2M1 at its largest.
inline constexpr Tolerance kRopeNormNvfp4Tolerance = {0x1p-2f, 0x1p-1f};
// FP32 sums over Dh and over the keys.
inline constexpr Tolerance kAttentionTolerance = {0x1p-7f, 0x1p-14f};
// Tensor cores: weights are rounded to BF16 before they meet the values, as the models' own
// references do. Each weight is off by up to 2^-9 of itself; the sum where signs differ by less.
inline constexpr Tolerance kTensorCoreAttentionTolerance = {0x1p-7f, 0x1p-7f};
// The convolution's rounding may fall the other way, by one unit of BF16 in an element of q, k or
// v: that stays in the state. Outputs are rounded once more.
inline constexpr Tolerance kGatedDeltaNetTolerance = {0x1p-6f, 0x1p-8f};
// The same in x, B or C.
inline constexpr Tolerance kMamba2Tolerance = {0x1p-6f, 0x1p-8f};
// FP32 outputs of two linears with BF16 between them: where a sum in another order flips one of F
// roundings there, the output moves by 2^-9 of one product of F.
inline constexpr Tolerance kMoeTolerance = {0x1p-10f, 0x1p-8f};
// With h in NVFP4 a rounding that falls the other way may flip a code, by up to a quarter of a
// product of F.
inline constexpr Tolerance kMoeW4a4Tolerance = {0x1p-8f, 0x1p-5f};
// Log-probabilities, absolute: a sum of up to 2^18 FP32 exponentials, in blocks.
inline constexpr float kLogprobTolerance = 2e-5f;

}  // namespace nibble::kernels
