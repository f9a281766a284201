#include "quantize/calibration.h"

#include <algorithm>
#include <cmath>

#include "formats/checkpoint.h"
#include "numerics/bf16.h"
#include "quantize/policy.h"

namespace nibble::quantize {

void Calibration::OnInput(std::span<const std::string> modules, const uint16_t* x, int64_t m,
                          int64_t k) {
  if (modules.empty()) return;
  const auto [first, added] =
      index_.try_emplace(formats::PlainName(modules.front()), statistics_.size());
  if (added) {
    statistics_.emplace_back();
    InputStatistics& fresh = statistics_.back().statistics;
    fresh.k = k;
    if (for_smoothing_ && MayBeSmoothed(first->first)) {
      fresh.column_amax.resize(k);
      fresh.sum_magnitude.resize(k);
      fresh.sum_square.resize(k);
    }
    const size_t at = first->second;
    for (const std::string& module : modules) index_[formats::PlainName(module)] = at;
  }
  Entry& entry = statistics_[index_.at(formats::PlainName(modules.front()))];
  InputStatistics& statistics = entry.statistics;
  for (int64_t i = 0; i < m * k; ++i)
    statistics.amax = std::max(statistics.amax, std::abs(Bf16ToFloat(x[i])));
  for (int64_t row = 0; row < m; ++row) {
    if (!statistics.column_amax.empty()) CountRow(entry, x + row * k);
    ++statistics.rows;
  }
}

void Calibration::CountRow(Entry& entry, const uint16_t* row) {
  InputStatistics& statistics = entry.statistics;
  if (statistics.rows % entry.stride == 0) KeepRow(entry, row);
  for (int64_t j = 0; j < statistics.k; ++j) {
    const float value = Bf16ToFloat(row[j]);
    const float magnitude = std::abs(value);
    statistics.column_amax[j] = std::max(statistics.column_amax[j], magnitude);
    statistics.sum_magnitude[j] += magnitude;
    statistics.sum_square[j] += static_cast<double>(value) * value;
  }
}

float InputStatistics::LargestScaled(std::span<const float> multipliers) const {
  float largest = 0;
  for (int64_t j = 0; j < k; ++j) largest = std::max(largest, column_amax[j] * multipliers[j]);
  return largest;
}

void Calibration::KeepRow(Entry& entry, const uint16_t* row) {
  InputStatistics& statistics = entry.statistics;
  std::vector<uint16_t>& sample = statistics.sample;
  if (statistics.sample_rows() == kSampleRows) {
    for (int64_t i = 1; i < kSampleRows / 2; ++i) {
      std::copy_n(sample.begin() + 2 * i * statistics.k, statistics.k,
                  sample.begin() + i * statistics.k);
    }
    sample.resize(kSampleRows / 2 * statistics.k);
    entry.stride *= 2;
    if (statistics.rows % entry.stride != 0) return;
  }
  sample.insert(sample.end(), row, row + statistics.k);
}

const InputStatistics* Calibration::Find(std::string_view module) const {
  const auto found = index_.find(formats::PlainName(module));
  return found == index_.end() ? nullptr : &statistics_[found->second].statistics;
}

}  // namespace nibble::quantize
