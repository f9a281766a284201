#include "models/layers/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace nibble::models {
namespace {

constexpr double kMaxTheta = 1e12;
constexpr double kMaxFactor = 1e6;

void ReadScaling(ConfigReader& scaling, int64_t max_positions, RopeConfig* rope) {
  const std::string type = scaling.String("rope_type", scaling.String("type", "default"));
  rope->theta = scaling.Float("rope_theta", 1.0, kMaxTheta, rope->theta);
  if (type == "default") {
    rope->type = RopeType::kDefault;
  } else if (type == "linear") {
    rope->type = RopeType::kLinear;
    rope->factor = scaling.Float("factor", 1.0, kMaxFactor);
  } else if (type == "llama3") {
    rope->type = RopeType::kLlama3;
    rope->factor = scaling.Float("factor", 1.0, kMaxFactor);
    rope->low_freq_factor = scaling.Float("low_freq_factor", 1e-3, 1e3);
    rope->high_freq_factor = scaling.Float("high_freq_factor", 1e-3, 1e3);
    scaling.Require(rope->high_freq_factor > rope->low_freq_factor,
                    fmt::format("high_freq_factor {} must exceed low_freq_factor {}",
                                rope->high_freq_factor, rope->low_freq_factor));
    rope->original_max_positions =
        scaling.Int("original_max_position_embeddings", 1, int64_t{1} << 31);
  } else if (type == "yarn") {
    rope->type = RopeType::kYarn;
    rope->original_max_positions =
        scaling.Int("original_max_position_embeddings", 1, int64_t{1} << 31, max_positions);
    const double implied =
        static_cast<double>(max_positions) / static_cast<double>(rope->original_max_positions);
    rope->factor = scaling.Float("factor", 1.0, kMaxFactor, std::max(1.0, implied));
    rope->beta_fast = scaling.Float("beta_fast", 1e-3, 1e6, 32.0);
    rope->beta_slow = scaling.Float("beta_slow", 1e-3, 1e6, 1.0);
    rope->mscale = scaling.Float("mscale", 0.0, 1e3, 0.0);
    rope->mscale_all_dim = scaling.Float("mscale_all_dim", 0.0, 1e3, 0.0);
    rope->attention_factor = scaling.Float("attention_factor", 0.0, 1e3, 0.0);
    rope->truncate = scaling.Bool("truncate", true);
  } else {
    scaling.Require(
        false,
        fmt::format("rope type \"{}\" is not supported: default, linear, llama3, yarn are", type));
  }
}

void ScaleLlama3(const RopeConfig& config, std::vector<double>* frequencies) {
  const double context = static_cast<double>(config.original_max_positions);
  for (double& f : *frequencies) {
    const double wavelength = 2 * std::numbers::pi / f;
    if (wavelength < context / config.high_freq_factor) continue;
    if (wavelength > context / config.low_freq_factor) {
      f /= config.factor;
      continue;
    }
    const double smooth = (context / wavelength - config.low_freq_factor) /
                          (config.high_freq_factor - config.low_freq_factor);
    f = (1 - smooth) * f / config.factor + smooth * f;
  }
}

void ScaleYarn(const RopeConfig& config, std::vector<double>* frequencies) {
  const double d = static_cast<double>(config.rotary_dim);
  const double context = static_cast<double>(config.original_max_positions);
  // The dimension at which `rotations` turns fit into the original context.
  const auto dimension = [&](double rotations) {
    return d * std::log(context / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(config.theta));
  };
  double low = dimension(config.beta_fast);
  double high = dimension(config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, d - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies->size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double f = (*frequencies)[i];
    (*frequencies)[i] = f * (1 - ramp) + f / config.factor * ramp;
  }
}

double YarnScale(double factor, double mscale) {
  return factor > 1 ? 0.1 * mscale * std::log(factor) + 1 : 1.0;
}

}  // namespace

RopeConfig ReadRopeConfig(ConfigReader& config, int64_t rotary_dim, int64_t max_positions,
                          double default_theta) {
  RopeConfig rope;
  rope.rotary_dim = rotary_dim;
  rope.theta = config.Float("rope_theta", 1.0, kMaxTheta, default_theta);
  for (const char* name : {"rope_parameters", "rope_scaling"}) {
    auto scaling = config.Object(name);
    if (!scaling) continue;
    ReadScaling(*scaling, max_positions, &rope);
    config.Adopt(*scaling);
    break;
  }
  return rope;
}

std::vector<double> RopeInverseFrequencies(const RopeConfig& config) {
  std::vector<double> frequencies(config.rotary_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(
        config.theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim));
  }
  switch (config.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      for (double& f : frequencies) f /= config.factor;
      break;
    case RopeType::kLlama3:
      ScaleLlama3(config, &frequencies);
      break;
    case RopeType::kYarn:
      ScaleYarn(config, &frequencies);
      break;
  }
  return frequencies;
}

double RopeAttentionFactor(const RopeConfig& config) {
  if (config.type != RopeType::kYarn) return 1.0;
  if (config.attention_factor > 0) return config.attention_factor;
  if (config.mscale > 0 && config.mscale_all_dim > 0) {
    return YarnScale(config.factor, config.mscale) /
           YarnScale(config.factor, config.mscale_all_dim);
  }
  return YarnScale(config.factor, 1.0);
}

double RopeScoreFactor(const RopeConfig& config) {
  if (config.mscale_all_dim == 0) return 1.0;
  return YarnScale(config.factor, config.mscale_all_dim);
}

RopeTable MakeRopeTable(const RopeConfig& config, int64_t positions) {
  const std::vector<double> frequencies = RopeInverseFrequencies(config);
  const double factor = RopeAttentionFactor(config);
  const size_t half = frequencies.size();
  RopeTable table;
  table.rotary_dim = static_cast<int32_t>(config.rotary_dim);
  table.cos.resize(positions * half);
  table.sin.resize(positions * half);
  for (int64_t position = 0; position < positions; ++position) {
    for (size_t i = 0; i < half; ++i) {
      // The references keep inverse frequencies and angles in FP32; so do we, to land on the same
      // angles.
      const float angle = static_cast<float>(position) * static_cast<float>(frequencies[i]);
      table.cos[position * half + i] =
          static_cast<float>(std::cos(static_cast<double>(angle)) * factor);
      table.sin[position * half + i] =
          static_cast<float>(std::sin(static_cast<double>(angle)) * factor);
    }
  }
  return table;
}

void Rope::Build(int64_t positions) {
  if (table_.rotary_dim == 0) table_ = MakeRopeTable(config_, positions);
}

}  // namespace nibble::models
