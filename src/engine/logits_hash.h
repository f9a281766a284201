// How the hash of a row of logits (kernels/logits_hash.h) is shown.
#pragma once

#include <cstdint>
#include <string>

namespace nibble::engine {

std::string FormatLogitsHash(uint64_t hash);  // 16 hexadecimal digits

}  // namespace nibble::engine
