// Made-up weights for benchmarks of kernels: random codes and scales, no value subnormal.
#pragma once

#include <cstdint>
#include <memory>

#include "base/error.h"
#include "device/buffer.h"
#include "kernels/ops.h"

namespace nibble::kernels {

inline constexpr int64_t kBenchIntGroup = 128;  // columns per scale of INT4 and INT8
inline constexpr int64_t kBenchFp8Block = 128;  // rows and columns per scale of FP8

// A cheap sequence: what the bytes are does not matter to speed.
class BenchBits {
 public:
  uint32_t Next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 33);
  }

 private:
  uint64_t state_ = 1;
};

// A stored weight (N, K) on the host.
class BenchWeight {
 public:
  static Result<BenchWeight> Make(WeightFormat format, int64_t n, int64_t k);
  static QuantView ViewOf(WeightFormat format, int64_t n, int64_t k);  // its sizes, without bytes
  const QuantView& view() const { return view_; }

 private:
  QuantView view_;
  Buffer data_;
  Buffer scales_;
};

// Packed on a host that has the memory for the packed form alone: beyond kBenchRows rows, whose
// number n is then a multiple of, the same ones are stacked again and again.
inline constexpr int64_t kBenchRows = 2048;
Result<std::unique_ptr<PackedWeight>> MakeBenchWeight(const OpTable& ops, ThreadPool& pool,
                                                      WeightFormat format,
                                                      ActivationFormat activations, int64_t n,
                                                      int64_t k);

}  // namespace nibble::kernels
