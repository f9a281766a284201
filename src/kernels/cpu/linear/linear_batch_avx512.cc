// 4-bit codes times integer activations on AVX-512 with VNNI and VBMI, many tokens: a chunk of K of
// two panels is decoded once into the nearest caches, where all tokens of the pass meet it.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx512.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx512_batch {
namespace {

#include "kernels/cpu/linear/rows_avx512.inc"
//
#include "kernels/cpu/linear/panel_output.inc"
//
#include "kernels/cpu/linear/pairs_avx512.inc"

// Blocks of 32 k that are decoded at once: two panels' take half of the first-level cache. Whole
// groups of any format.
template <typename Products>
constexpr int kChunkBlocks = 32 / Products::kCodes;

// 32 k of one panel.
template <typename Products>
struct DecodedBlock {
  __m512i codes[4 * Products::kCodes];
  PartScale parts[Products::kParts];
};

template <typename Products>
NIBBLE_INLINE void DecodeCodes(const std::byte* p, __m512i* codes) {
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v, codes += Products::kCodes) {
    const __m512i bytes = _mm512_load_si512(p + 64 * v);
    codes[0] = Products::template Decode<0>(bytes);
    codes[1] = Products::template Decode<1>(bytes);
    if constexpr (Products::kCodes == 4) {
      codes[2] = Products::template Decode<2>(bytes);
      codes[3] = Products::template Decode<3>(bytes);
    }
  }
}

// Decodes `blocks` blocks of one panel from `p` on.
template <CodeFormat F, typename Products>
void DecodeChunk(const std::byte* p, int64_t blocks, DecodedBlock<Products>* out) {
  constexpr int kBlocks = CodeLayout<F>::kBlocks;
  for (int64_t group = 0; group < blocks / kBlocks; ++group) {
    ScaleBytes scales = LoadScaleBytes(p);
    for (int block = 0; block < kBlocks; ++block, ++out) {
      DecodeCodes<Products>(p + kScaleBytes + block * kCodeBytes, out->codes);
      out->parts[0] = ScaleOfPart<F, 0>(scales);
      if constexpr (Products::kParts == 2) out->parts[1] = ScaleOfPart<F, 1>(scales);
      scales = NextScales<F>(scales);
    }
    p += kGroupBytes<F>;
  }
}

// One token's sums of two panels.
struct TwoRows {
  Row row[2];
};

// Lines of memory to ask for, a few at a time, so that the requests do not queue up.
struct Ahead {
  const std::byte* p[2];  // of the two panels
  bool wanted;

  NIBBLE_INLINE void Ask() {
    constexpr int64_t kBytes = 320;  // of a panel per block of 32 k: all formats have fewer
    if (!wanted) return;
    for (const std::byte*& next : p) {
      PrefetchFar<kBytes>(next);
      next += kBytes;
    }
  }
};

// Adds the products of T tokens and `blocks` blocks to their sums.
template <typename Products, int T>
void AddChunk(const DecodedBlock<Products>* first, const DecodedBlock<Products>* second,
              const typename Products::Activations* x, int64_t blocks, Ahead ahead, TwoRows* sums) {
  constexpr int kPartCodes = 4 * Products::kCodes / Products::kParts;
  Row acc[2 * T];
#pragma GCC unroll 16
  for (int i = 0; i < 2 * T; ++i) acc[i] = sums[i / 2].row[i % 2];
  for (int64_t block = 0; block < blocks; ++block, ++first, ++second, x += T) {
    ahead.Ask();
#pragma GCC unroll 2
    for (int part = 0; part < Products::kParts; ++part) {
      typename Products::Sum sum[2 * T];
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) sum[2 * t] = sum[2 * t + 1] = Products::Start(x[t], part);
      // Tokens inside: as many independent sums as there are registers hide the latency.
#pragma GCC unroll 8
      for (int d = part * kPartCodes; d < (part + 1) * kPartCodes; ++d) {
        const __m512i codes[2] = {first->codes[d], second->codes[d]};
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
          const auto splat = Products::Splat(x[t], d);
          sum[2 * t] = Products::Add(sum[2 * t], codes[0], splat);
          sum[2 * t + 1] = Products::Add(sum[2 * t + 1], codes[1], splat);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < 2 * T; ++i) {
        const PartScale& scale = (i % 2 == 0 ? first : second)->parts[part];
        const Row product = FmaRows(Products::Finish(sum[i]), scale.scale, scale.magic);
        acc[i] = FmaSplat(product, x[i / 2].scale, acc[i]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 2 * T; ++i) sums[i / 2].row[i % 2] = acc[i];
}

template <CodeFormat F, typename Products, int... kSizes>
void RunBatch(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  constexpr int kBlocks = CodeLayout<F>::kBlocks;
  constexpr int kChunk = kChunkBlocks<Products>;
  constexpr int64_t kChunkBytes = kChunk / kBlocks * kGroupBytes<F>;
  constexpr int kMaxIdleSlots = 8;  // of the last tile
  DecodedBlock<Products> decoded[2][kChunk];
  TwoRows sums[kPassTokens + kMaxIdleSlots];
  const int64_t blocks = job.groups * kBlocks;
  for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
    const int panels = panel + 1 < panel_end ? 2 : 1;
    const std::byte* weights = job.weights + panel * job.panel_bytes;
    for (int64_t t = 0; t < job.m + kMaxIdleSlots; ++t) sums[t] = {ZeroRow(), ZeroRow()};
    for (int64_t block = 0; block < blocks; block += kChunk, weights += kChunkBytes) {
      const int64_t left = blocks - block;
      const int64_t count = left < kChunk ? left : kChunk;
      // The next chunk: of the panel, or of the next pair.
      const std::byte* next =
          left > kChunk ? weights + kChunkBytes : job.weights + (panel + 2) * job.panel_bytes;
      for (int i = 0; i < panels; ++i) {
        DecodeChunk<F>(weights + i * job.panel_bytes, count, decoded[i]);
      }
      for (int64_t token = 0; token < job.m; token += job.tile) {
        const int64_t slots = job.m - token < job.tile ? job.last_tile : job.tile;
        const auto* x = reinterpret_cast<const typename Products::Activations*>(
                            job.activations + token * job.token_bytes) +
                        block * slots;
        const Ahead ahead = {.p = {next, next + job.panel_bytes}, .wanted = token == 0};
        ((slots == kSizes && (AddChunk<Products, kSizes>(decoded[0], decoded[panels - 1], x, count,
                                                         ahead, sums + token),
                              true)) ||
         ...);
      }
    }
    for (int64_t token = 0; token < job.m; ++token) {
      for (int i = 0; i < panels; ++i) StoreOutput(job, panel + i, token, sums[token].row[i]);
    }
  }
}

template <CodeFormat F, typename Products>
constexpr PanelRun kBatch = RunBatch<F, Products, 1, 2, 3, 4, 5, 6, 7>;

}  // namespace
}  // namespace avx512_batch

CodeRuns Avx512BatchRuns() {
  using namespace avx512_batch;
  return {.nvfp4_int8 = kBatch<CodeFormat::kNvfp4, Nvfp4Int8>,
          .nvfp4_int16 = kBatch<CodeFormat::kNvfp4, Words>,
          .mxfp4_int8 = kBatch<CodeFormat::kMxfp4, Mxfp4Int8>,
          .mxfp4_int16 = kBatch<CodeFormat::kMxfp4, Words>};
}

}  // namespace nibble::kernels::cpu
