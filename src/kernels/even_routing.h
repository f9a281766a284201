// The choice of experts that benchmarks with made-up weights use in place of the router's, which
// such weights make uneven: a hash picks them evenly. Pure functions, the same on every backend.
#pragma once

#include <cstdint>

#include "numerics/host_device.h"

namespace nibble::kernels {

// Experts (first + i * step) mod E, i < top_k: different ones, and each as likely as any other.
// top_k steps are no more than E.
struct EvenChoice {
  int32_t first = 0;
  int32_t step = 1;

  NIBBLE_HD int32_t expert(int32_t i, int32_t experts) const {
    const int32_t at = first + i * step;
    return at < experts ? at : at - experts;
  }
};

// key: of a token; salt: of a layer.
NIBBLE_HD inline EvenChoice ChooseEvenly(uint32_t key, uint32_t salt, int32_t experts,
                                         int32_t top_k) {
  uint64_t hash = (uint64_t{key} << 32 | salt) + 0x9E3779B97F4A7C15u;
  hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9u;
  hash = (hash ^ (hash >> 27)) * 0x94D049BB133111EBu;
  hash ^= hash >> 31;
  return {
      .first = static_cast<int32_t>(static_cast<uint32_t>(hash) % static_cast<uint32_t>(experts)),
      .step = 1 + static_cast<int32_t>(static_cast<uint32_t>(hash >> 32) %
                                       static_cast<uint32_t>(experts / top_k))};
}

}  // namespace nibble::kernels
