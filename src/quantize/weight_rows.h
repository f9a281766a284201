// A stored weight as rows in FP32, in the order of its inputs: what the quantizer encodes from.
// Column orders and input multipliers of integer formats are undone, so that a row is what x is
// multiplied by. Thread-safety: const, any thread.
#pragma once

#include <cstdint>
#include <utility>

#include "base/thread_pool.h"
#include "formats/checkpoint.h"

namespace nibble::quantize {

class WeightRows {
 public:
  explicit WeightRows(formats::LinearData data) : data_(std::move(data)) {}

  const QuantView& view() const { return data_.view; }
  int64_t n() const { return data_.view.n; }
  int64_t k() const { return data_.view.k; }

  // out (K); scratch (K) is written where the columns have an order.
  void Row(int64_t row, float* out, float* scratch) const;

  // The largest magnitude; NaN or infinity if the weight holds one.
  float LargestMagnitude(ThreadPool& pool) const;

 private:
  formats::LinearData data_;
};

}  // namespace nibble::quantize
