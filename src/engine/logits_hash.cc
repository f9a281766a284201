#include "engine/logits_hash.h"

#include <fmt/format.h>

namespace nibble::engine {

std::string FormatLogitsHash(uint64_t hash) { return fmt::format("{:016x}", hash); }

}  // namespace nibble::engine
