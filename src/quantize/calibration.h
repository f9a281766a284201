// What a model's linears see while it reads a text: the basis of activation scales and smoothing.
//
// Set as LoadOptions::observer, then run the model over the text. Linears that share an input share
// its statistics. What smoothing needs, 20 K bytes per input and the sample's at most 128 K, is
// kept only if it is wanted and for linears that may be smoothed (policy.h).
// Thread-safety: OnInput on one thread; Find when that is done.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "models/weights.h"

namespace nibble::quantize {

struct InputStatistics {
  int64_t k = 0;
  int64_t rows = 0;  // seen
  float amax = 0;    // largest |x|
  // For smoothing, else empty:
  std::vector<float> column_amax;     // (K)
  std::vector<double> sum_magnitude;  // (K): Σ |x|
  std::vector<double> sum_square;     // (K): Σ x²
  std::vector<uint16_t> sample;       // (S, K) BF16: rows spread evenly over those seen
  // The largest |x[j] * multipliers[j]|; multipliers (K).
  float LargestScaled(std::span<const float> multipliers) const;
  int64_t sample_rows() const { return k > 0 ? static_cast<int64_t>(sample.size()) / k : 0; }
};

class Calibration : public models::LinearObserver {
 public:
  static constexpr int64_t kSampleRows = 64;

  explicit Calibration(bool for_smoothing) : for_smoothing_(for_smoothing) {}

  void OnInput(std::span<const std::string> modules, const uint16_t* x, int64_t m,
               int64_t k) override;

  // Of a module by its name in the checkpoint; null if the text never reached it (an expert that no
  // token chose).
  const InputStatistics* Find(std::string_view module) const;

  bool empty() const { return statistics_.empty(); }

 private:
  // Every stride-th row is kept; when the sample is full, every other row of it goes and the stride
  // doubles.
  struct Entry {
    InputStatistics statistics;
    int64_t stride = 1;
  };
  static void CountRow(Entry& entry, const uint16_t* row);
  static void KeepRow(Entry& entry, const uint16_t* row);

  const bool for_smoothing_;
  std::vector<Entry> statistics_;
  std::unordered_map<std::string, size_t> index_;  // plain module name -> statistics_
};

}  // namespace nibble::quantize
