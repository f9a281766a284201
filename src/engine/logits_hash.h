// What makes two runs comparable at a glance: a hash of a row of logits.
//
// XXH64 with seed 0 over the row's FP32 bits, little-endian, in the order of the vocabulary: raw
// logits, before penalties, biases and temperature. Equal hashes mean equal bits, so it is the same
// whatever ran beside a request, and differs between kernels that sum in another order.
// Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace nibble::engine {

uint64_t HashLogits(std::span<const float> logits);  // (V)

std::string FormatLogitsHash(uint64_t hash);  // 16 hexadecimal digits

}  // namespace nibble::engine
