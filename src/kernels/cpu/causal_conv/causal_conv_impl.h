// The leaf of the causal convolution over simd.h.
#pragma once

namespace nibble::kernels::NIBBLE_ISA {

static void ConvSilu(const uint16_t* const* rows, const float* taps, const float* bias,
                     int64_t width, int64_t n, int64_t m, float* out, int64_t out_stride) {
  for (int64_t t = 0; t < m; ++t) {
    int64_t first = 0;
    while (rows[t + first] == nullptr) ++first;
    ForEachVector(n, [&](int64_t i, auto count) {
      F32 sum = bias != nullptr ? LoadF32(bias + i, count) : Set(0.0f);
      for (int64_t j = first; j < width; ++j)
        sum = Fma(LoadF32(taps + j * n + i, count), LoadBf16(rows[t + j] + i, count), sum);
      StoreF32(out + t * out_stride + i, RoundToBf16(Silu(sum)), count);
    });
  }
}

}  // namespace nibble::kernels::NIBBLE_ISA
