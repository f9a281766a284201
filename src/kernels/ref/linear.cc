#include <cmath>
#include <limits>
#include <vector>

#include "kernels/activated_linear.h"
#include "kernels/ref/ref.h"
#include "kernels/weight_check.h"
#include "numerics/bf16.h"
#include "numerics/fp8_activations.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels::ref {
namespace {

constexpr int64_t kIntegerBlock = 32;

// A copy of the stored weight, as it was stored.
class RefWeight final : public PackedWeight {
 public:
  struct Part {
    std::vector<std::byte> data;
    std::vector<std::byte> scales;
    std::vector<uint8_t> zeros;
    QuantView view;
  };

  RefWeight(std::span<const QuantView> parts, ActivationFormat activations)
      : parts_(parts.size()), activations_(activations) {
    for (size_t i = 0; i < parts.size(); ++i) {
      Part& part = parts_[i];
      part.view = parts[i];
      part.data.assign(parts[i].data, parts[i].data + parts[i].data_bytes());
      part.view.data = part.data.data();
      if (const int64_t bytes = parts[i].scale_bytes(); bytes > 0) {
        part.scales.assign(parts[i].scales, parts[i].scales + bytes);
        part.view.scales = part.scales.data();
      }
      if (const int64_t bytes = parts[i].zero_bytes(); bytes > 0) {
        part.zeros.assign(parts[i].zeros, parts[i].zeros + bytes);
        part.view.zeros = part.zeros.data();
      }
      n_ += parts[i].n;
      bytes_ += static_cast<int64_t>(part.data.size() + part.scales.size() + part.zeros.size());
    }
    input_scale_ = StackedInputScale(parts);
    fp8_ = Fp8ActivationsOf(parts);
    // Of all parts: they are equal.
    if (const int32_t* order = parts[0].column_order; order != nullptr) {
      column_order_.assign(order, order + parts[0].k);
    }
    if (const float* multiplier = parts[0].input_multiplier; multiplier != nullptr) {
      input_multiplier_.assign(multiplier, multiplier + parts[0].k);
    }
  }

  WeightFormat format() const override { return parts_[0].view.format; }
  ActivationFormat activations() const override { return activations_; }
  int64_t n() const override { return n_; }
  int64_t k() const override { return parts_[0].view.k; }
  int64_t bytes() const override { return bytes_; }
  float input_scale() const override { return input_scale_; }
  Fp8Activations fp8() const override { return fp8_; }

  // What meets the weight's columns in place of x, (K) both.
  std::vector<uint16_t> TransformedActivations(const uint16_t* x) const {
    std::vector<uint16_t> out(k());
    for (int64_t i = 0; i < k(); ++i) {
      const uint16_t value = x[column_order_.empty() ? i : column_order_[i]];
      out[i] = input_multiplier_.empty() ? value
                                         : Bf16FromFloat(Bf16ToFloat(value) * input_multiplier_[i]);
    }
    return out;
  }

  // Row `row` of the stack, in FP32.
  void Row(int64_t row, float* out) const {
    size_t part = 0;
    while (row >= parts_[part].view.n) row -= parts_[part++].view.n;
    DequantizeRow(parts_[part].view, row, out);
  }

 private:
  std::vector<Part> parts_;
  std::vector<int32_t> column_order_;    // (K) or empty: as stored
  std::vector<float> input_multiplier_;  // (K) or empty: 1
  ActivationFormat activations_;
  float input_scale_ = 0.0f;
  Fp8Activations fp8_;
  int64_t n_ = 0;
  int64_t bytes_ = 0;
};

// Below it a block counts as zero.
constexpr float kSmallestBlock = 0x1p-100f;

// Infinity if one of the values is not finite.
float LargestMagnitude(const uint16_t* x, int64_t count) {
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(Bf16ToFloat(x[i]));
    if (!std::isfinite(magnitude)) return std::numeric_limits<float>::infinity();
    largest = std::max(largest, magnitude);
  }
  return largest;
}

// A block of values, each as `round` (of its largest magnitude and the value) gives it. Blocks
// below 2^-100 count as zero; one that holds infinity or NaN becomes NaN.
void RoundBlock(const uint16_t* x, int64_t count, double (*round)(float amax, float value),
                double* out) {
  const float amax = LargestMagnitude(x, count);
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(amax)) {
      out[i] = std::numeric_limits<double>::quiet_NaN();
    } else if (amax < kSmallestBlock) {
      out[i] = 0.0;
    } else {
      out[i] = round(amax, Bf16ToFloat(x[i]));
    }
  }
}

// As int8 and back: the scale is amax / 127, values round to nearest, ties to even.
double RoundToInt8(float amax, float value) {
  const float inverse = 127.0f / amax;
  const float scale = amax / 127.0f;
  return static_cast<double>(std::nearbyint(value * inverse)) * static_cast<double>(scale);
}

// As multiples of 2^-13 of the largest's power of two, nearest, ties to even.
double RoundToInt16(float amax, float value) {
  const double unit = std::ldexp(1.0, std::ilogb(amax) - 13);
  return std::nearbyint(static_cast<double>(value) / unit) * unit;
}

void PrepareToken(const uint16_t* x, int64_t k, ActivationFormat format, double* out) {
  if (format == ActivationFormat::kBf16) {
    for (int64_t i = 0; i < k; ++i) out[i] = static_cast<double>(Bf16ToFloat(x[i]));
    return;
  }
  const auto round = format == ActivationFormat::kInt16 ? RoundToInt16 : RoundToInt8;
  for (int64_t i = 0; i < k; i += kIntegerBlock) {
    RoundBlock(x + i, std::min(kIntegerBlock, k - i), round, out + i);
  }
}

// NVFP4 and back.
void RoundToNvfp4(const uint16_t* x, int64_t k, float input_scale, double* out) {
  const float inverse = 1.0f / input_scale;
  for (int64_t block = 0; block < k; block += kNvfp4Block) {
    float values[kNvfp4Block];
    for (int i = 0; i < kNvfp4Block; ++i) values[i] = Bf16ToFloat(x[block + i]);
    const uint8_t scale = Nvfp4ActivationScale(MaxMagnitude(values, kNvfp4Block), inverse);
    const float multiplier = Nvfp4ActivationMultiplier(scale, inverse);
    for (int i = 0; i < kNvfp4Block; ++i) {
      out[block + i] = static_cast<double>(E2M1ToFloat(E2M1FromFloat(values[i] * multiplier))) *
                       static_cast<double>(E4M3ToFloat(scale)) * static_cast<double>(input_scale);
    }
  }
}

// FP8 and back.
void RoundToFp8(const uint16_t* x, const RefWeight& weight, double* out) {
  const int64_t k = weight.k(), group = weight.fp8().group;
  for (int64_t first = 0; first < k; first += group) {
    const int64_t end = std::min(k, first + group);
    float amax = 0.0f;
    for (int64_t i = first; i < end; ++i) {  // no std::fmax: g++ 12 fails on it for aarch64
      const float magnitude = std::fabs(Bf16ToFloat(x[i]));
      if (magnitude > amax) amax = magnitude;  // NaN leaves it as it is
    }
    const float scale = weight.fp8().scale > 0.0f ? weight.fp8().scale : Fp8ActivationScale(amax);
    const float multiplier = Fp8ActivationMultiplier(scale);
    for (int64_t i = first; i < end; ++i)
      out[i] = static_cast<double>(E4M3ToFloat(E4M3FromFloat(Bf16ToFloat(x[i]) * multiplier))) *
               static_cast<double>(scale);
  }
}

// What a token's k columns count as in a product.
using PrepareRow = void (*)(const RefWeight& weight, const uint16_t* x, double* out);

void Multiply(const OpContext& context, const LinearParams& params, PrepareRow prepare) {
  if (params.activation != nullptr) {
    const auto multiply = [prepare](const OpContext& rest, const LinearParams& product) {
      Multiply(rest, product, prepare);
    };
    return LinearThenActivation(context, params, multiply, Activation);
  }
  const auto& weight = static_cast<const RefWeight&>(*params.weight);
  const int64_t n = weight.n();
  const int64_t k = weight.k();
  std::vector<double> x(params.m * k);
  for (int64_t token = 0; token < params.m; ++token) {
    const std::vector<uint16_t> normed =
        NormedRow(params.norm, params.x + token * params.x_stride, k);
    const std::vector<uint16_t> transformed = weight.TransformedActivations(normed.data());
    prepare(weight, transformed.data(), &x[token * k]);
  }
  std::vector<float> w(k);
  for (int64_t row = 0; row < n; ++row) {
    weight.Row(row, w.data());
    for (int64_t token = 0; token < params.m; ++token) {
      double sum = 0.0;
      for (int64_t i = 0; i < k; ++i) sum += x[token * k + i] * static_cast<double>(w[i]);
      if (params.bias != nullptr) sum += static_cast<double>(params.bias[row]);
      const int64_t at = token * params.y_stride + row;
      if (params.y_f32 != nullptr) {
        params.y_f32[at] = static_cast<float>(sum);
      } else {
        StoreOutput(static_cast<float>(sum), params.add, &params.y[at]);
      }
    }
  }
}

}  // namespace

Result<std::unique_ptr<PackedWeight>> PackWeight(const PackParams& params) {
  NIBBLE_TRY(CheckWeight(params));
  for (const QuantView& part : params.parts) NIBBLE_TRY(CheckBlockScales(part, 0, part.n));
  return std::make_unique<RefWeight>(
      params.parts, EffectiveActivations(params.parts[0].format, params.activations));
}

void Linear(const OpContext& context, const LinearParams& params) {
  Multiply(context, params, [](const RefWeight& weight, const uint16_t* x, double* out) {
    PrepareToken(x, weight.k(), weight.activations(), out);
  });
}

void LinearW4a4(const OpContext& context, const LinearParams& params) {
  Multiply(context, params, [](const RefWeight& weight, const uint16_t* x, double* out) {
    RoundToNvfp4(x, weight.k(), weight.input_scale(), out);
  });
}

void LinearFp8(const OpContext& context, const LinearParams& params) {
  Multiply(context, params, [](const RefWeight& weight, const uint16_t* x, double* out) {
    RoundToFp8(x, weight, out);
  });
}

void HeadLinear(const OpContext& context, const HeadLinearParams& p) {
  for (size_t h = 0; h < p.weights.size(); ++h) {
    Linear(context, {.x = p.x + static_cast<int64_t>(h) * p.x_head_stride,
                     .x_stride = p.x_stride,
                     .weight = p.weights[h],
                     .y = p.y + static_cast<int64_t>(h) * p.y_head_stride,
                     .y_stride = p.y_stride,
                     .m = p.t});
  }
}

void Embed(const OpContext&, const EmbedParams& params) {
  const auto& table = static_cast<const RefWeight&>(*params.table);
  std::vector<float> row(table.k());
  for (int64_t token = 0; token < params.t; ++token) {
    table.Row(EmbeddedId(params, token), row.data());
    for (int64_t i = 0; i < table.k(); ++i) {
      params.out[token * table.k() + i] = Bf16FromFloat(RoundToBf16(row[i]) * params.scale);
    }
  }
}

}  // namespace nibble::kernels::ref
