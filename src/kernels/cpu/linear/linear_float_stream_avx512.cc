// FP8 weights times BF16 activations as FP32 multiply-adds on AVX-512, one tile of few tokens: two
// panels stream by, so that twice as many sums hide the latency of the additions.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512_float_stream {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"

constexpr int64_t kBlockBytes = int64_t{kPanelRows} * kBlockK;

// Adds pairs [P, kPairsPerBlock) of both panels, the second member of a pair first.
template <int P, int T>
NIBBLE_INLINE void AddPairs(const std::byte* const (&w)[2], const F32Block* x, Row (&dot)[2 * T]) {
  if constexpr (P < kPairsPerBlock) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    const __m512i words[2] = {Fp8Words<P>(w[0]), Fp8Words<P>(w[1])};
    Row high[2], low[2];
#pragma GCC unroll 2
    for (int panel = 0; panel < 2; ++panel) {
      high[panel] = _mm512_castsi512_ps(_mm512_and_si512(words[panel], mask));
      low[panel] = _mm512_castsi512_ps(_mm512_slli_epi32(words[panel], 16));
    }
#pragma GCC unroll 16
    for (int i = 0; i < 2 * T; ++i) {
      dot[i] = FmaSplat(high[i % 2], x[i / 2].x[2 * P + 1], dot[i]);
      dot[i] = FmaSplat(low[i % 2], x[i / 2].x[2 * P], dot[i]);
    }
    AddPairs<P + 1, T>(w, x, dot);
  }
}

template <int T>
void RunPair(const PanelJob& job, int64_t panel, int panels) {
  const auto* x = reinterpret_cast<const F32Block*>(job.activations);
  const std::byte* p = job.weights + panel * job.panel_bytes;
  const float* scales = job.block_scales + panel * job.scale_columns * kPanelRows;
  // A last single panel is its own neighbour.
  const int64_t second = panels == 2 ? job.panel_bytes : 0;
  const int64_t second_scales = panels == 2 ? job.scale_columns * kPanelRows : 0;
  Row acc[2 * T];
#pragma GCC unroll 16
  for (int i = 0; i < 2 * T; ++i) acc[i] = ZeroRow();
  int64_t left = job.blocks_per_scale;  // blocks until the next scale column
  int64_t bytes_left = job.panel_bytes;
  for (int64_t block = 0; block < 2 * job.groups;
       ++block, p += kBlockBytes, bytes_left -= kBlockBytes, x += T) {
    PrefetchStream<kBlockBytes>(p, bytes_left, job.panel_bytes);
    PrefetchStream<kBlockBytes>(p + second, bytes_left, job.panel_bytes);
    const std::byte* const w[2] = {p, p + second};
    Row dot[2 * T];
#pragma GCC unroll 16
    for (int i = 0; i < 2 * T; ++i) dot[i] = ZeroRow();
    AddPairs<0, T>(w, x, dot);
    const Row scale[2] = {LoadRow(scales), LoadRow(scales + second_scales)};
#pragma GCC unroll 16
    for (int i = 0; i < 2 * T; ++i) acc[i] = FmaRows(dot[i], scale[i % 2], acc[i]);
    if (--left == 0) {
      left = job.blocks_per_scale;
      scales += kPanelRows;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 2 * T; ++i) {
    if (i / 2 < job.m && i % 2 < panels) StoreOutput(job, panel + i % 2, i / 2, acc[i]);
  }
}

template <int... kSizes>
void RunStream(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  const int64_t slots = job.wide_tokens > 0 ? job.tile : job.last_tile;
  for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
    const int panels = panel + 1 < panel_end ? 2 : 1;
    ((slots == kSizes && (RunPair<kSizes>(job, panel, panels), true)) || ...);
  }
}

}  // namespace
}  // namespace avx512_float_stream

FloatRuns Avx512FloatStreamRuns() {
  return {.fp8 = avx512_float_stream::RunStream<1, 2, 3, 4, 5, 6, 7, 8>};
}

}  // namespace nibble::kernels::cpu
