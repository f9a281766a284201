// What makes two runs comparable at a glance: a hash of a row of logits.
//
// The sum, modulo 2^64, of one term per token, which depends on the token's id and on the bits of
// its raw logit (before penalties, biases and temperature), then mixed. Equal rows have equal
// hashes whatever ran beside them; rows that differ in a bit hardly ever do. A sum has no order, so
// that every backend takes it along while it reads the row. Each term is a product of two halves
// that both know the bits, as in XXH3. Thread-safety: pure functions.
#pragma once

#include <bit>
#include <cstdint>
#include <span>

#include "numerics/host_device.h"

namespace nibble::kernels {

// Always inline: it is compiled for several instruction sets.
[[gnu::always_inline]] NIBBLE_HD inline uint64_t LogitHashTerm(uint32_t bits, uint32_t token) {
  const uint32_t low = bits + token * 0x9E3779B1u + 0x165667B1u;
  const uint32_t high = (bits ^ 0xC2B2AE3Du) + token * 0x85EBCA77u;
  return uint64_t{low} * high;
}

NIBBLE_HD inline uint64_t FinishLogitsHash(uint64_t sum) {
  sum = (sum ^ (sum >> 33)) * 0xC2B2AE3D27D4EB4Fu;
  sum = (sum ^ (sum >> 29)) * 0x165667B19E3779F9u;
  return sum ^ (sum >> 32);
}

inline uint64_t HashLogits(std::span<const float> logits) {  // (V)
  uint64_t sum = 0;
  for (uint32_t token = 0; token < logits.size(); ++token)
    sum += LogitHashTerm(std::bit_cast<uint32_t>(logits[token]), token);
  return FinishLogitsHash(sum);
}

}  // namespace nibble::kernels
