// KV caches in NVFP4: per head and page first the codes, (page_size, Dh / 2) pairs of E2M1, the
// even dimension in the low bits, then the scales, (page_size, Dh / 16) E4M3, one per 16 dimensions
// of a token. Dh is a multiple of 16, keys lie in rows, and there is no scale per tensor.
//
// A token's block of 16 is quantised when it is written, by the rule for activations
// (numerics/nvfp4.h) with a tensor scale of 1: scale = E4M3(largest / 6), code = E2M1(x / scale).
// What is read, code times scale, is exact in BF16.
#pragma once

#include <cstdint>

#include "kernels/op_params.h"
#include "numerics/bf16.h"
#include "numerics/host_device.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels {

// Where a row of k or v lies in its cache; row = (page * Hk + head) * page_size + the token's
// place.
struct Nvfp4CacheRow {
  int64_t codes = 0;   // byte
  int64_t scales = 0;  // byte
};

NIBBLE_HD constexpr Nvfp4CacheRow Nvfp4RowOf(int32_t page_size, int32_t head_dim, int64_t row) {
  const int64_t codes = head_dim / 2, scales = head_dim / kNvfp4Block;
  const int64_t page = row / page_size, place = row % page_size;
  const int64_t begin = page * page_size * (codes + scales);
  return {.codes = begin + place * codes, .scales = begin + page_size * codes + place * scales};
}

// head (Dh) BF16 into the row.
inline void StoreNvfp4Row(const KvLayerView& cache, std::byte* base, int64_t row,
                          const uint16_t* head) {
  const Nvfp4CacheRow place = Nvfp4RowOf(cache.page_size, cache.head_dim, row);
  for (int32_t block = 0; block < cache.head_dim / kNvfp4Block; ++block) {
    float values[kNvfp4Block];
    for (int i = 0; i < kNvfp4Block; ++i) values[i] = Bf16ToFloat(head[block * kNvfp4Block + i]);
    const uint8_t scale = Nvfp4ActivationScale(MaxMagnitude(values, kNvfp4Block), 1.0f);
    const float multiplier = Nvfp4ActivationMultiplier(scale, 1.0f);
    base[place.scales + block] = static_cast<std::byte>(scale);
    for (int i = 0; i < kNvfp4Block; i += 2)
      base[place.codes + (block * kNvfp4Block + i) / 2] = static_cast<std::byte>(PackE2M1(
          E2M1FromFloat(values[i] * multiplier), E2M1FromFloat(values[i + 1] * multiplier)));
  }
}

// As it is read.
inline float Nvfp4CacheElement(const KvLayerView& cache, const std::byte* base, int64_t row,
                               int32_t d) {
  const Nvfp4CacheRow place = Nvfp4RowOf(cache.page_size, cache.head_dim, row);
  const auto pair = static_cast<uint8_t>(base[place.codes + d / 2]);
  const auto scale = static_cast<uint8_t>(base[place.scales + d / kNvfp4Block]);
  return Nvfp4Dequantize(pair >> (d % 2 * 4) & 15, scale, 1.0f);
}

// A whole row (Dh).
inline void LoadNvfp4Row(const KvLayerView& cache, const std::byte* base, int64_t row,
                         uint16_t* head) {
  const Nvfp4CacheRow place = Nvfp4RowOf(cache.page_size, cache.head_dim, row);
  for (int32_t block = 0; block < cache.head_dim / kNvfp4Block; ++block) {
    const float scale = E4M3ToFloat(static_cast<uint8_t>(base[place.scales + block]));
    for (int32_t d = block * kNvfp4Block; d < (block + 1) * kNvfp4Block; d += 2) {
      const auto pair = static_cast<uint8_t>(base[place.codes + d / 2]);
      head[d] = Bf16FromFloat(E2M1ToFloat(pair & 15) * scale);
      head[d + 1] = Bf16FromFloat(E2M1ToFloat(pair >> 4) * scale);
    }
  }
}

}  // namespace nibble::kernels
