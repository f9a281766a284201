#include "models/layers/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace nibble::models {
namespace {

constexpr double kMaxTheta = 1e12;
constexpr double kMaxFactor = 1e6;

void ReadLongRope(ConfigReader& scaling, int64_t max_positions, RopeConfig* rope) {
  rope->type = RopeType::kLongRope;
  if (rope->original_max_positions == 0) {
    rope->original_max_positions =
        scaling.Int("original_max_position_embeddings", 2, int64_t{1} << 31);
  }
  const double implied =
      static_cast<double>(max_positions) / static_cast<double>(rope->original_max_positions);
  rope->factor = scaling.Float("factor", 1e-3, kMaxFactor, implied);
  rope->attention_factor = scaling.Float("attention_factor", 0.0, 1e3, 0.0);
  rope->short_factors = scaling.Floats("short_factor", 1e-6, kMaxFactor);
  rope->long_factors = scaling.Floats("long_factor", 1e-6, kMaxFactor);
  const auto pairs = static_cast<size_t>(rope->rotary_dim / 2);
  scaling.Require(rope->short_factors.size() == pairs && rope->long_factors.size() == pairs,
                  fmt::format("short_factor holds {} numbers and long_factor {}: expected {}, one "
                              "per pair of rotated dimensions",
                              rope->short_factors.size(), rope->long_factors.size(), pairs));
}

void ReadScaling(ConfigReader& scaling, int64_t max_positions, RopeConfig* rope) {
  const std::string type = scaling.String("rope_type", scaling.String("type", "default"));
  rope->theta = scaling.Float("rope_theta", 1.0, kMaxTheta, rope->theta);
  // Early Phi-3 files say "su" or "yarn" for longrope.
  if (type == "longrope" || type == "su" || scaling.Has("short_factor")) {
    ReadLongRope(scaling, max_positions, rope);
  } else if (type == "default") {
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
        false, fmt::format(
                   "rope type \"{}\" is not supported: default, linear, llama3, yarn, longrope are",
                   type));
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

// Rows of positions 0..positions - 1.
void AppendRows(const RopeConfig& config, RopeSet set, int64_t positions, RopeTable* table) {
  const std::vector<double> frequencies = RopeInverseFrequencies(config, set);
  const double factor = RopeAttentionFactor(config);
  table->cos.reserve(table->cos.size() + positions * frequencies.size());
  table->sin.reserve(table->sin.size() + positions * frequencies.size());
  for (int64_t position = 0; position < positions; ++position) {
    for (const double frequency : frequencies) {
      // The references keep inverse frequencies and angles in FP32; so do we, to land on the same
      // angles.
      const float angle = static_cast<float>(position) * static_cast<float>(frequency);
      table->cos.push_back(static_cast<float>(std::cos(static_cast<double>(angle)) * factor));
      table->sin.push_back(static_cast<float>(std::sin(static_cast<double>(angle)) * factor));
    }
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
  rope.original_max_positions =
      config.Int("original_max_position_embeddings", 2, int64_t{1} << 31, 0);
  for (const char* name : {"rope_parameters", "rope_scaling"}) {
    auto scaling = config.Object(name);
    if (!scaling) continue;
    ReadScaling(*scaling, max_positions, &rope);
    config.Adopt(*scaling);
    break;
  }
  return rope;
}

RopeConfig ReadRopeParameters(ConfigReader& parameters, int64_t rotary_dim, int64_t max_positions,
                              double default_theta) {
  RopeConfig rope;
  rope.rotary_dim = rotary_dim;
  rope.theta = default_theta;
  ReadScaling(parameters, max_positions, &rope);
  return rope;
}

int64_t ReadRotaryDim(ConfigReader& config, int64_t head_dim) {
  double factor = config.Float("partial_rotary_factor", 0.0, 1.0, 1.0);
  if (auto parameters = config.Object("rope_parameters")) {
    factor = parameters->Float("partial_rotary_factor", 0.0, 1.0, factor);
    config.Adopt(*parameters);
  }
  const auto rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * factor);
  config.Require(rotary_dim >= 2 && rotary_dim % 2 == 0,
                 fmt::format("partial_rotary_factor {} rotates {} of {} dimensions: expected an "
                             "even number of at least 2",
                             factor, rotary_dim, head_dim));
  return rotary_dim;
}

std::vector<double> RopeInverseFrequencies(const RopeConfig& config, RopeSet set) {
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
    case RopeType::kLongRope: {
      const auto& factors = set == RopeSet::kShort ? config.short_factors : config.long_factors;
      for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= factors[i];
      break;
    }
  }
  return frequencies;
}

double RopeAttentionFactor(const RopeConfig& config) {
  if (config.attention_factor > 0) return config.attention_factor;
  if (config.type == RopeType::kLongRope) {
    if (config.factor <= 1) return 1.0;
    const auto context = static_cast<double>(config.original_max_positions);
    return std::sqrt(1 + std::log(config.factor) / std::log(context));
  }
  if (config.type != RopeType::kYarn) return 1.0;
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
  RopeTable table;
  table.rotary_dim = static_cast<int32_t>(config.rotary_dim);
  if (config.type == RopeType::kLongRope && positions > config.original_max_positions) {
    table.long_rows = config.original_max_positions;
    AppendRows(config, RopeSet::kShort, config.original_max_positions, &table);
    AppendRows(config, RopeSet::kLong, positions, &table);
  } else {
    AppendRows(config, RopeSet::kShort, positions, &table);
  }
  return table;
}

Status Rope::Build(int64_t positions, Device& device) {
  if (rotary_dim_ > 0) return {};
  RopeTable table = MakeRopeTable(config_, positions);
  rotary_dim_ = table.rotary_dim;
  long_rows_ = table.long_rows;
  NIBBLE_TRY(cos_.Assign(std::move(table.cos), device));
  return sin_.Assign(std::move(table.sin), device);
}

}  // namespace nibble::models
