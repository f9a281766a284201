// Residual add and RMS norm over simd.h.
#pragma once

namespace nibble::kernels::NIBBLE_ISA {

static void AddRow(uint16_t* x, const uint16_t* delta, int64_t n) {
  ForEachVector(n, [&](int64_t i, auto count) {
    StoreBf16(x + i, Add(LoadBf16(x + i, count), LoadBf16(delta + i, count)), count);
  });
}

static void RoundRow(const float* in, int64_t n, uint16_t* out) {
  ForEachVector(n,
                [&](int64_t i, auto count) { StoreBf16(out + i, LoadF32(in + i, count), count); });
}

// Four partial sums, so that a row is not bound by the latency of one chain.
static float SumOfSquares(const uint16_t* x, int64_t d) {
  F32 sums[4] = {Set(0), Set(0), Set(0), Set(0)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= d; i += 4 * kLanes)
    for (int part = 0; part < 4; ++part) {
      const F32 value = LoadBf16(x + i + part * kLanes);
      sums[part] = Fma(value, value, sums[part]);
    }
  ForEachVector(d - i, [&](int64_t j, auto count) {
    const F32 value = LoadBf16(x + i + j, count);
    sums[0] = Fma(value, value, sums[0]);
  });
  return Sum(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

template <NormStyle kStyle>
static void NormalizeRow(const uint16_t* x, const float* weight, int64_t d, float inverse,
                         uint16_t* out) {
  ForEachVector(d, [&](int64_t i, auto count) {
    const F32 normalized = Mul(LoadBf16(x + i, count), Set(inverse));
    const F32 w = LoadF32(weight + i, count);
    if constexpr (kStyle == NormStyle::kRoundThenScale)
      StoreBf16(out + i, Mul(RoundToBf16(normalized), w), count);
    else if constexpr (kStyle == NormStyle::kScaleOnePlus)
      StoreBf16(out + i, Mul(normalized, Add(Set(1.0f), w)), count);
    else
      StoreBf16(out + i, Mul(normalized, w), count);
  });
}

static void RmsNorm(const uint16_t* x, const float* weight, int64_t d, float eps, NormStyle style,
                    uint16_t* out) {
  const float mean = SumOfSquares(x, d) / static_cast<float>(d);
  const float inverse = 1.0f / __builtin_sqrtf(mean + eps);
  switch (style) {
    case NormStyle::kRoundThenScale:
      return NormalizeRow<NormStyle::kRoundThenScale>(x, weight, d, inverse, out);
    case NormStyle::kScaleOnePlus:
      return NormalizeRow<NormStyle::kScaleOnePlus>(x, weight, d, inverse, out);
    case NormStyle::kScaleThenRound:
      return NormalizeRow<NormStyle::kScaleThenRound>(x, weight, d, inverse, out);
  }
}

}  // namespace nibble::kernels::NIBBLE_ISA
