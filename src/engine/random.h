// Counter-based randomness: the draw for a token is a pure function of (seed, choice, position), so
// that it depends on no other request, no order and no earlier draw.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011). Thread-safe: no state.
#pragma once

#include <array>
#include <cstdint>

namespace nibble::engine {

constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// Uniform in [0, 1) with 53 random bits. position: of the token to be drawn, the prompt included.
constexpr double UniformDraw(uint64_t seed, int32_t choice, int64_t position) {
  const auto position_bits = static_cast<uint64_t>(position);
  const auto random =
      Philox4x32({static_cast<uint32_t>(position_bits), static_cast<uint32_t>(position_bits >> 32),
                  static_cast<uint32_t>(choice), 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = (uint64_t{random[1]} << 32 | random[0]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

// What a token's experts hang on with EngineOptions.even_routing: a hash of its sequence and
// position.
constexpr uint32_t EvenKey(uint64_t seed, int32_t choice, int64_t position) {
  return static_cast<uint32_t>(UniformDraw(seed, choice, position) * 0x1.0p32);
}

}  // namespace nibble::engine
