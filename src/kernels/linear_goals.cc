#include "kernels/linear_goals.h"

#include <algorithm>

namespace nibble::kernels {
namespace {

// The kernel's name ends in its activation format and starts with its weight format.
bool TakesInt8(const LinearMeasurement& m) { return m.kernel.ends_with("int8"); }
bool HasCodes(const LinearMeasurement& m) {
  return m.kernel.starts_with("nvfp4") || m.kernel.starts_with("mxfp4");
}
bool Requantized(const LinearMeasurement& m) { return m.kernel.ends_with("requantized"); }

const LinearMeasurement* Find(std::span<const LinearMeasurement> measurements,
                              const LinearMeasurement& like, int threads, int64_t tokens) {
  const auto it = std::find_if(measurements.begin(), measurements.end(), [&](const auto& other) {
    return other.kernel == like.kernel && other.threads == threads && other.m == tokens &&
           other.k == like.k;
  });
  return it == measurements.end() ? nullptr : &*it;
}

// Of one token: decoding is as fast as memory.
double ReadGoal(const LinearMeasurement& m) {
  if (m.threads > 1) return 0.90;
  return HasCodes(m) && TakesInt8(m) ? 0.88 : 0.85;
}

}  // namespace

std::vector<LinearVerdict> VerdictsOf(const LinearMeasurement& m, const LinearProbes& probes,
                                      bool wide_vectors,
                                      std::span<const LinearMeasurement> earlier) {
  std::vector<LinearVerdict> verdicts;
  const auto add = [&](LinearCeiling ceiling, double goal, double reached) {
    verdicts.push_back({.ceiling = ceiling, .goal = goal, .reached = reached});
  };
  if (m.m == 1) add(LinearCeiling::kRead, ReadGoal(m), m.read_share());
  if (m.m == 4 && HasCodes(m) && TakesInt8(m) && wide_vectors) {
    if (const auto* one = Find(earlier, m, m.threads, 1)) {
      add(LinearCeiling::kTimeOfOneToken, 1.2, m.seconds / one->seconds);
    }
  }
  const double of_int8 = probes.best_int8 > 0 ? m.ops_per_second / probes.best_int8 : 0;
  if (HasCodes(m) && TakesInt8(m) && of_int8 > 0) {
    if (!wide_vectors) {
      if (m.m == 512) add(LinearCeiling::kInt8, 0.19, of_int8);
    } else if (m.m == 16) {
      add(LinearCeiling::kInt8, 0.50, of_int8);
    } else if (m.m >= 128) {
      add(LinearCeiling::kInt8, 0.58, of_int8);
    }
  }
  if (Requantized(m) && m.m == 512 && of_int8 > 0 && wide_vectors)
    add(LinearCeiling::kInt8, 0.78, of_int8);
  if (m.m == 512 && wide_vectors && m.kernel.ends_with("bf16") && m.peak > 0) {
    add(LinearCeiling::kMultiply, 0.95, m.compute_share());
  }
  if (m.m == 512 && m.threads == 2) {
    if (const auto* one = Find(earlier, m, 1, m.m)) {
      add(LinearCeiling::kOneThread, 1.8, one->seconds / m.seconds);
    }
  }
  return verdicts;
}

}  // namespace nibble::kernels
