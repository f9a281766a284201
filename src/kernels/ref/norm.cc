#include <cmath>

#include "kernels/ref/ref.h"
#include "numerics/bf16.h"

namespace nibble::kernels::ref {
namespace {

// x (n) += delta (n), rounded to BF16.
void AddRow(uint16_t* x, const uint16_t* delta, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = Bf16FromFloat(Bf16ToFloat(x[i]) + Bf16ToFloat(delta[i]));
}

}  // namespace

void NormalizeRow(const uint16_t* x, const float* weight, int64_t d, float eps, NormStyle style,
                  uint16_t* out) {
  double sum = 0;
  for (int64_t i = 0; i < d; ++i) {
    const double value = Bf16ToFloat(x[i]);
    sum += value * value;
  }
  const float mean = static_cast<float>(sum / static_cast<double>(d));
  const float inverse = 1.0f / std::sqrt(mean + eps);
  for (int64_t i = 0; i < d; ++i) {
    const float normalized = Bf16ToFloat(x[i]) * inverse;
    switch (style) {
      case NormStyle::kRoundThenScale:
        out[i] = Bf16FromFloat(RoundToBf16(normalized) * weight[i]);
        break;
      case NormStyle::kScaleOnePlus:
        out[i] = Bf16FromFloat(normalized * (1.0f + weight[i]));
        break;
      case NormStyle::kScaleThenRound:
        out[i] = Bf16FromFloat(normalized * weight[i]);
        break;
    }
  }
}

std::vector<uint16_t> NormedRow(const InputNorm& norm, const uint16_t* x, int64_t d) {
  std::vector<uint16_t> row(x, x + d);
  if (norm.weight != nullptr) NormalizeRow(x, norm.weight, d, norm.eps, norm.style, row.data());
  return row;
}

void StoreOutput(float result, bool add, uint16_t* y) {
  *y = Bf16FromFloat(add ? Bf16ToFloat(*y) + RoundToBf16(result) : result);
}

void RmsNorm(const OpContext&, const RmsNormParams& p) {
  for (int64_t t = 0; t < p.t; ++t) {
    uint16_t* x = p.x + t * p.d;
    if (p.delta != nullptr) AddRow(x, p.delta + t * p.d, p.d);
    NormalizeRow(x, p.weight, p.d, p.eps, p.style, p.out + t * p.d);
  }
}

void Add(const OpContext&, const AddParams& p) { AddRow(p.x, p.delta, p.t * p.d); }

void Round(const OpContext&, const RoundParams& p) {
  for (int64_t i = 0; i < p.n; ++i) p.y[i] = Bf16FromFloat(p.x[i]);
}

}  // namespace nibble::kernels::ref
