// 4-bit codes times integer activations on AVX-512 with VNNI and VBMI, one tile of few tokens: two
// panels stream by and are decoded in registers.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512_stream {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/pairs_avx512.inc"

// Vector i of codes of both panels meets T tokens.
template <typename Products, int i, int T>
NIBBLE_INLINE void AddCodes(const __m512i (&bytes)[2], const typename Products::Activations* x,
                            int d, typename Products::Sum (&sum)[2 * T]) {
  const __m512i codes[2] = {Products::template Decode<i>(bytes[0]),
                            Products::template Decode<i>(bytes[1])};
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    const auto splat = Products::Splat(x[t], d + i);
    sum[2 * t] = Products::Add(sum[2 * t], codes[0], splat);
    sum[2 * t + 1] = Products::Add(sum[2 * t + 1], codes[1], splat);
  }
}

template <CodeFormat F, typename Products, int kPart, int T>
NIBBLE_INLINE void AddPart(const std::byte* const (&codes)[2], const ScaleBytes (&scales)[2],
                           const typename Products::Activations* x, Row (&product)[2 * T],
                           Row (&acc)[2 * T]) {
  constexpr int kVectors = 4 / Products::kParts;
  typename Products::Sum sum[2 * T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) sum[2 * t] = sum[2 * t + 1] = Products::Start(x[t], kPart);
#pragma GCC unroll 4
  for (int v = kPart * kVectors; v < (kPart + 1) * kVectors; ++v) {
    const __m512i bytes[2] = {_mm512_load_si512(codes[0] + 64 * v),
                              _mm512_load_si512(codes[1] + 64 * v)};
    const int d = v * Products::kCodes;
    AddCodes<Products, 0, T>(bytes, x, d, sum);
    AddCodes<Products, 1, T>(bytes, x, d, sum);
    if constexpr (Products::kCodes == 4) {
      AddCodes<Products, 2, T>(bytes, x, d, sum);
      AddCodes<Products, 3, T>(bytes, x, d, sum);
    }
  }
#pragma GCC unroll 2
  for (int panel = 0; panel < 2; ++panel) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const int i = 2 * t + panel;
      const Row finished = Products::Finish(sum[i]);
      if constexpr (kPart == 0) {
        product[i] = FirstProduct(finished, FirstScale<F>(scales[panel]));
      } else {
        product[i] = JoinProduct(product[i], finished, SecondScale<F>(scales[panel]));
      }
      if constexpr (kPart == Products::kParts - 1)
        acc[i] = FmaSplat(product[i], x[t].scale, acc[i]);
    }
  }
}

// Likewise, a part's codes decoded once for all digits.
template <CodeFormat F, int kPart, int T>
NIBBLE_INLINE void AddPart24(const std::byte* const (&codes)[2], const ScaleBytes (&scales)[2],
                             const Int24Block* x, Row (&acc)[2 * T]) {
  // Few tokens: one sum per digit, or the sums' latency would show.
  constexpr bool kApart = T <= 2;
  using Products = Int24Products<CodeLayout<F>::kScalesPerBlock>;
  constexpr int kVectors = 4 / Products::kParts;
  __m512i decoded[2][2 * kVectors];
#pragma GCC unroll 2
  for (int panel = 0; panel < 2; ++panel) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512i bytes = _mm512_load_si512(codes[panel] + 64 * (kPart * kVectors + v));
      decoded[panel][2 * v] = OffsetCodes<0>(bytes);
      decoded[panel][2 * v + 1] = OffsetCodes<1>(bytes);
    }
  }
  __m512i sums[3][2 * T];
  __m512i(&sum)[2 * T] = sums[0];
#pragma GCC unroll 16
  for (int i = 0; i < 2 * T; ++i) {
    sum[i] = Products::Start(x[i / 2], kPart);
    sums[1][i] = sums[2][i] = _mm512_setzero_si512();
  }
#pragma GCC unroll 3
  for (int digit = 0; digit < Products::kDigits; ++digit) {
    __m512i(&digit_sum)[2 * T] = sums[kApart ? digit : 0];
    if (!kApart && digit > 0) {
#pragma GCC unroll 16
      for (int i = 0; i < 2 * T; ++i) sum[i] = Products::Shift(sum[i], x[i / 2], kPart, digit);
    }
#pragma GCC unroll 8
    for (int d = 0; d < 2 * kVectors; ++d) {
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const auto splat = Products::Splat(x[t], 2 * kPart * kVectors + d, digit);
        digit_sum[2 * t] = Products::Add(digit_sum[2 * t], decoded[0][d], splat);
        digit_sum[2 * t + 1] = Products::Add(digit_sum[2 * t + 1], decoded[1][d], splat);
      }
    }
  }
  if constexpr (kApart) {
#pragma GCC unroll 4
    for (int i = 0; i < 2 * T; ++i) {
      for (int digit = 1; digit < Products::kDigits; ++digit) {
        sum[i] = _mm512_add_epi32(Products::Shift(sum[i], x[i / 2], kPart, digit), sums[digit][i]);
      }
    }
  }
#pragma GCC unroll 2
  for (int panel = 0; panel < 2; ++panel) {
    const Row scale = ScaleRow<F, kPart>(scales[panel]);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const int i = 2 * t + panel;
      acc[i] = Products::Take(acc[i], sum[i], scale);
    }
  }
}

// T slots of tokens and the panels at w[0] and w[1].
template <CodeFormat F, typename Products, int T>
void RunPair(const PanelJob& job, int64_t panel, int panels) {
  constexpr bool kScaled = Products::kScaleBlocks > 0;
  const auto* x = reinterpret_cast<const typename Products::Activations*>(job.activations);
  const std::byte* w = job.weights + panel * job.panel_bytes;
  // A last single panel is its own neighbour.
  const int64_t second = panels == 2 ? job.panel_bytes : 0;
  Row acc[2 * T];
  [[maybe_unused]] Row total[2 * T];  // where activation scales come last
#pragma GCC unroll 16
  for (int i = 0; i < 2 * T; ++i) acc[i] = total[i] = ZeroRow();
  const std::byte* const end = w + job.panel_bytes;
  for (int64_t group = 0; group < job.groups; ++group, w += kCodeGroupBytes<F>) {
    PrefetchStream<kScaleBytes>(w, end - w, job.panel_bytes);
    PrefetchStream<kScaleBytes>(w + second, end - w, job.panel_bytes);
    ScaleBytes scales[2] = {LoadScaleBytes(w), LoadScaleBytes(w + second)};
    for (int block = 0; block < CodeLayout<F>::kBlocks; ++block, x += T) {
      const std::byte* first = w + kScaleBytes + block * kCodeBytes;
      const std::byte* const codes[2] = {first, first + second};
      PrefetchStream<kCodeBytes>(codes[0], end - codes[0], job.panel_bytes);
      PrefetchStream<kCodeBytes>(codes[1], end - codes[0], job.panel_bytes);
      if constexpr (Products::kDigits > 1) {
        AddPart24<F, 0, T>(codes, scales, x, acc);
        if constexpr (Products::kParts == 2) AddPart24<F, 1, T>(codes, scales, x, acc);
      } else {
        Row product[2 * T];
        AddPart<F, Products, 0, T>(codes, scales, x, product, acc);
        if constexpr (Products::kParts == 2)
          AddPart<F, Products, 1, T>(codes, scales, x, product, acc);
      }
      scales[0] = NextScales<F>(scales[0]);
      scales[1] = NextScales<F>(scales[1]);
      if constexpr (kScaled) {
        if (block % Products::kScaleBlocks != Products::kScaleBlocks - 1) continue;
#pragma GCC unroll 16
        for (int i = 0; i < 2 * T; ++i) {
          total[i] = FmaSplat(acc[i], x[i / 2].scale, total[i]);
          acc[i] = ZeroRow();
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 2 * T; ++i) {
    if (i / 2 < job.m && i % 2 < panels) {
      StoreOutput(job, panel + i % 2, i / 2, kScaled ? total[i] : acc[i]);
    }
  }
}

template <CodeFormat F, typename Products, int... kSizes>
void RunStream(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  const int64_t slots = job.wide_tokens > 0 ? job.tile : job.last_tile;
  for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
    const int panels = panel + 1 < panel_end ? 2 : 1;
    static_cast<void>(
        ((slots == kSizes && (RunPair<F, Products, kSizes>(job, panel, panels), true)) || ...));
  }
}

template <CodeFormat F, typename Products>
constexpr PanelRun kStream = RunStream<F, Products, 1, 2, 3, 4, 5, 6, 7, 8>;
template <CodeFormat F>
constexpr PanelRun kInt24Stream =
    RunStream<F, Int24Products<CodeLayout<F>::kScalesPerBlock>, 1, 2, 3, 4, 5, 6, 7, 8>;
template <CodeFormat F>
constexpr PanelRun kDigitStream = RunStream<F, Digits, 1, 2, 3>;

}  // namespace
}  // namespace avx512_stream

CodeRuns Avx512StreamRuns() {
  using namespace avx512_stream;
  return {.nvfp4_int24 = kInt24Stream<CodeFormat::kNvfp4>,
          .mxfp4_int24 = kInt24Stream<CodeFormat::kMxfp4>,
          .nvfp4_int8 = kStream<CodeFormat::kNvfp4, Nvfp4Int8>,
          .nvfp4_int16 = kStream<CodeFormat::kNvfp4, Words>,
          .nvfp4_digits = kDigitStream<CodeFormat::kNvfp4>,
          .mxfp4_int8 = kStream<CodeFormat::kMxfp4, Mxfp4Int8>,
          .mxfp4_int16 = kStream<CodeFormat::kMxfp4, Words>,
          .mxfp4_digits = kDigitStream<CodeFormat::kMxfp4>};
}

}  // namespace nibble::kernels::cpu
