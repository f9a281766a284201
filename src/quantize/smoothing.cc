#include "quantize/smoothing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "numerics/bf16.h"

namespace nibble::quantize {
namespace {

constexpr float kAlphas[] = {0.15f, 0.3f, 0.45f, 0.6f, 0.75f};
// Less than this is noise of the sample, and not worth a multiplication per activation.
constexpr double kWorthwhile = 0.98;
constexpr int kLanes = 16;

std::vector<float> Multipliers(const InputStatistics& inputs, float alpha) {
  std::vector<float> scales(inputs.k);
  const double floor = 1e-6 * inputs.amax * static_cast<double>(inputs.rows);
  for (int64_t j = 0; j < inputs.k; ++j) {
    const double mean = std::max(inputs.sum_magnitude[j], floor) / static_cast<double>(inputs.rows);
    scales[j] = static_cast<float>(std::pow(mean, alpha));
  }
  const auto [low, high] = std::ranges::minmax_element(scales);
  const float centre = std::sqrt(*low * *high);
  std::vector<float> multipliers(inputs.k);
  for (int64_t j = 0; j < inputs.k; ++j) multipliers[j] = RoundToBf16(centre / scales[j]);
  return multipliers;
}

// Calls fn(row, back) with every row and what becomes of row / p; sums what it returns, in order.
template <typename Fn>
double SumOverRows(std::span<const WeightRows> weights, const std::vector<float>& multipliers,
                   const Encoder& encoder, ThreadPool& pool, const Fn& fn) {
  double sum = 0;
  for (const WeightRows& weight : weights) {
    std::vector<double> parts(weight.n());
    pool.ParallelFor(weight.n(), 4, [&](int64_t begin, int64_t end, int) {
      const int64_t k = weight.k();
      std::vector<float> row(k), scaled(k), back(k);
      std::vector<uint8_t> codes(encoder.code_bytes()), scales(encoder.scale_bytes());
      for (int64_t i = begin; i < end; ++i) {
        weight.Row(i, row.data(), scaled.data());
        for (int64_t j = 0; j < k; ++j) scaled[j] = row[j] / multipliers[j];
        encoder.EncodeRow(scaled.data(), codes.data(), scales.data(), back.data());
        parts[i] = fn(row.data(), back.data());
      }
    });
    sum = std::accumulate(parts.begin(), parts.end(), sum);
  }
  return sum;
}

float Dot(const float* a, const float* b, int64_t k) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= k; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += a[j + lane] * b[j + lane];
  }
  float sum = 0;
  for (; j < k; ++j) sum += a[j] * b[j];
  for (const float lane : lanes) sum += lane;
  return sum;
}

// Σ over inputs and rows of (x·w - x'·w')², inputs drawn from the sample.
double OutputError(std::span<const WeightRows> weights, const InputStatistics& inputs,
                   const std::vector<float>& multipliers, const Encoder& encoder,
                   ThreadPool& pool) {
  const int64_t k = inputs.k, samples = inputs.sample_rows();
  std::vector<float> x(samples * k), scaled(samples * k);
  for (int64_t i = 0; i < samples * k; ++i) {
    x[i] = Bf16ToFloat(inputs.sample[i]);
    scaled[i] = RoundToBf16(x[i] * multipliers[i % k]);
  }
  return SumOverRows(weights, multipliers, encoder, pool, [&](const float* row, const float* back) {
    double error = 0;
    for (int64_t s = 0; s < samples; ++s) {
      const double difference = Dot(&x[s * k], row, k) - Dot(&scaled[s * k], back, k);
      error += difference * difference;
    }
    return error;
  });
}

// The same error if the columns of x were uncorrelated: cheap enough for every alpha.
double DiagonalError(std::span<const WeightRows> weights, const InputStatistics& inputs,
                     const std::vector<float>& multipliers, const Encoder& encoder,
                     ThreadPool& pool) {
  std::vector<float> weight_of(inputs.k);
  for (int64_t j = 0; j < inputs.k; ++j) weight_of[j] = static_cast<float>(inputs.sum_square[j]);
  return SumOverRows(weights, multipliers, encoder, pool, [&](const float* row, const float* back) {
    float error = 0;
    for (int64_t j = 0; j < inputs.k; ++j) {
      const float difference = row[j] - back[j] * multipliers[j];
      error += difference * difference * weight_of[j];
    }
    return static_cast<double>(error);
  });
}

}  // namespace

float LargestScaled(std::span<const WeightRows> weights, std::span<const float> multipliers,
                    ThreadPool& pool) {
  std::vector<float> largest(pool.threads(), 0.0f);
  for (const WeightRows& weight : weights) {
    pool.ParallelFor(weight.n(), 8, [&](int64_t begin, int64_t end, int thread) {
      std::vector<float> row(weight.k()), scratch(weight.k());
      for (int64_t i = begin; i < end; ++i) {
        weight.Row(i, row.data(), scratch.data());
        for (int64_t j = 0; j < weight.k(); ++j)
          largest[thread] = std::max(largest[thread], std::abs(row[j] / multipliers[j]));
      }
    });
  }
  return *std::ranges::max_element(largest);
}

std::vector<float> FindSmoothing(std::span<const WeightRows> weights, const InputStatistics& inputs,
                                 const EncoderFactory& encoder, Method method, ThreadPool& pool) {
  if (weights.empty() || inputs.rows == 0 || !(inputs.amax > 0.0f)) return {};
  const auto encoder_for = [&](const std::vector<float>& multipliers, Method wanted) {
    return encoder(LargestScaled(weights, multipliers, pool), wanted);
  };
  const auto diagonal = [&](const std::vector<float>& multipliers) {
    return DiagonalError(weights, inputs, multipliers, *encoder_for(multipliers, Method::kMax),
                         pool);
  };
  const std::vector<float> none(inputs.k, 1.0f);
  double best_error = diagonal(none);
  std::vector<float> best;
  for (const float alpha : kAlphas) {
    std::vector<float> tried = Multipliers(inputs, alpha);
    const double error = diagonal(tried);
    if (!(error < best_error)) continue;
    best_error = error;
    best = std::move(tried);
  }
  if (best.empty()) return {};
  const auto output = [&](const std::vector<float>& multipliers) {
    return OutputError(weights, inputs, multipliers, *encoder_for(multipliers, method), pool);
  };
  return output(best) < kWorthwhile * output(none) ? best : std::vector<float>();
}

}  // namespace nibble::quantize
