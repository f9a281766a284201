// Scales of queries that grow with the position, so that attention over long contexts stays sharp:
//
//   q *= 1 + strength * ln(1 + ⌊(position + offset) / interval⌋)
//
// Llama 4 uses it on its layers without positions, Ministral 3 on all. Shared by the layers of a
// model; built when the model is loaded, immutable afterwards.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "device/resident.h"

namespace nibble::models {

class QueryScale {
 public:
  QueryScale(double strength, int64_t interval, int64_t offset)
      : strength_(strength), interval_(interval), offset_(offset) {}

  // Called by every layer; the first call counts.
  Status Build(int64_t positions, Device& device) {
    if (!table_.empty()) return {};
    std::vector<float> table;
    for (int64_t p = 0; p < positions; ++p) {
      const auto steps = static_cast<double>((p + offset_) / interval_);
      table.push_back(static_cast<float>(1 + strength_ * std::log1p(steps)));
    }
    return table_.Assign(std::move(table), device);
  }

  const Resident<float>& table() const { return table_; }  // (positions)

 private:
  const double strength_;
  const int64_t interval_;
  const int64_t offset_;
  Resident<float> table_;
};

}  // namespace nibble::models
