#include "engine/logits_hash.h"

#include <fmt/format.h>

#include <bit>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace nibble::engine {

static_assert(std::endian::native == std::endian::little, "the bytes of a float are hashed");

uint64_t HashLogits(std::span<const float> logits) {
  return XXH64(logits.data(), logits.size_bytes(), 0);
}

std::string FormatLogitsHash(uint64_t hash) { return fmt::format("{:016x}", hash); }

}  // namespace nibble::engine
