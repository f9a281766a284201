// Rotary position embedding: the inverse frequencies of every scaling type that the registered
// models use, and the table of cosines and sines over positions.
//
// Sources: the transformers library's rope utilities for types and defaults; YaRN (Peng et al.
// 2023); Llama 3.1's scaling.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/error.h"
#include "device/resident.h"
#include "models/config_reader.h"

namespace nibble::models {

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn, kLongRope };

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  int64_t rotary_dim = 0;  // d: even
  double factor = 1.0;
  int64_t original_max_positions = 0;  // N0; longrope: beyond it the long factors count
  double low_freq_factor = 1.0;        // llama3
  double high_freq_factor = 4.0;       // llama3
  double beta_fast = 32.0;             // yarn
  double beta_slow = 1.0;              // yarn
  double mscale = 0.0;                 // yarn, 0: absent
  double mscale_all_dim = 0.0;         // yarn, 0: absent
  double attention_factor = 0.0;       // yarn, longrope; 0: computed
  bool truncate = true;                // yarn
  std::vector<double> short_factors;   // longrope, (d / 2)
  std::vector<double> long_factors;    // longrope, (d / 2)
};

// Which frequencies of a LongRoPE model: by the length of the sequence, up to N0 or beyond.
enum class RopeSet : uint8_t { kShort = 0, kLong = 1 };

// Reads rope_theta and rope_scaling, or the newer rope_parameters, of a config. Unknown types are
// an error by name.
RopeConfig ReadRopeConfig(ConfigReader& config, int64_t rotary_dim, int64_t max_positions,
                          double default_theta);
// The same from one object of parameters, for models with several ropes.
RopeConfig ReadRopeParameters(ConfigReader& parameters, int64_t rotary_dim, int64_t max_positions,
                              double default_theta);

// d: partial_rotary_factor's share of a head, wherever the config says it.
int64_t ReadRotaryDim(ConfigReader& config, int64_t head_dim);

// (d / 2) inverse frequencies, in double.
std::vector<double> RopeInverseFrequencies(const RopeConfig& config, RopeSet set = RopeSet::kShort);

// What cosines and sines are multiplied by.
double RopeAttentionFactor(const RopeConfig& config);

// DeepSeek's further factor of q and of k, dimensions without rotation included, by mscale_all_dim.
double RopeScoreFactor(const RopeConfig& config);

// A row per position; with LongRoPE the rows of the short frequencies, up to N0, come first, then
// those of the long ones (none where the table ends before N0).
struct RopeTable {
  std::vector<float> cos;  // (rows, d / 2)
  std::vector<float> sin;
  int32_t rotary_dim = 0;
  int64_t long_rows = 0;  // where the long frequencies' rows begin; 0: there are none
};

RopeTable MakeRopeTable(const RopeConfig& config, int64_t positions);

// The table that the layers of a model share: its config is known early, its length when the model
// is loaded.
class Rope {
 public:
  explicit Rope(RopeConfig config) : config_(std::move(config)) {}

  // Called by every layer; the first call counts.
  Status Build(int64_t positions, Device& device);
  const float* cos() const { return cos_.data(); }  // as RopeTable's
  const float* sin() const { return sin_.data(); }
  int32_t rotary_dim() const { return rotary_dim_; }
  int64_t long_rows() const { return long_rows_; }
  const RopeConfig& config() const { return config_; }

 private:
  const RopeConfig config_;
  Resident<float> cos_;
  Resident<float> sin_;
  int32_t rotary_dim_ = 0;
  int64_t long_rows_ = 0;
};

}  // namespace nibble::models
