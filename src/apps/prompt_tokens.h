// Prompts for benchmarks.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble::apps {

// Ids that repeat nothing, so that no prefix is shared between sequences or rounds.
inline std::vector<int32_t> PromptTokens(int64_t count, int64_t vocab, uint32_t seed) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) {
    seed = seed * 1664525u + 1013904223u;
    token = static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(vocab));
  }
  return tokens;
}

}  // namespace nibble::apps
