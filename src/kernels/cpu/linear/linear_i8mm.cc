// 4-bit codes times int8 activations on Arm with the 8-bit matrix extension, two tokens at a time:
// smmla multiplies 2 rows x 8 k by 8 k x 2 tokens. Everything else, and single tokens, are
// linear_neon.cc's. Sums and their order are those of code_loops.inc.
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

#define NIBBLE_INLINE inline __attribute__((always_inline))

namespace nibble::kernels::cpu {
namespace i8mm {
namespace {

constexpr int kQuads = 4;     // registers of four rows
constexpr int kRowPairs = 8;  // of a panel
constexpr int kDwords = 8;    // of four k in 32
constexpr int kSteps = 2;     // of 8 k in 16

struct Row {
  float32x4_t v[kQuads];
};
NIBBLE_INLINE Row LoadRow(const float* p) {
  return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
NIBBLE_INLINE void StoreRow(const Row& row, float* p) {
  for (int i = 0; i < kQuads; ++i) vst1q_f32(p + 4 * i, row.v[i]);
}
NIBBLE_INLINE Row FmaRows(const Row& a, const Row& b, const Row& c) {
  Row sum;
  for (int i = 0; i < kQuads; ++i) sum.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return sum;
}

#include "kernels/cpu/linear/panel_output.inc"

// 32 k of 16 rows: 2 rows x 8 k per register, [8 k][row pair].
struct Codes {
  int8x16_t w[kDwords / 2][kRowPairs];
};

NIBBLE_INLINE void DecodeCodes(const std::byte* p, Codes* out) {
  const int8x16_t table = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
#pragma GCC unroll 4
  for (int v = 0; v < kDwords / 2; ++v) {
#pragma GCC unroll 4
    for (int quad = 0; quad < kQuads; ++quad) {
      const uint8x16_t bytes = vld1q_u8(reinterpret_cast<const uint8_t*>(p) + 64 * v + 16 * quad);
      const int32x4_t low =
          vreinterpretq_s32_s8(vqtbl1q_s8(table, vandq_u8(bytes, vdupq_n_u8(0x0F))));
      const int32x4_t high = vreinterpretq_s32_s8(vqtbl1q_s8(table, vshrq_n_u8(bytes, 4)));
      out->w[v][2 * quad] = vreinterpretq_s8_s32(vzip1q_s32(low, high));
      out->w[v][2 * quad + 1] = vreinterpretq_s8_s32(vzip2q_s32(low, high));
    }
  }
}

// A scale of each row, twice: [row pair] as smmla's results lie, (row, token) in order.
struct Scales {
  float32x4_t v[kRowPairs];
};

template <CodeFormat F>
NIBBLE_INLINE Scales ScalesOf(const std::byte* group, int index) {
  constexpr int kShift = F == CodeFormat::kNvfp4 ? 20 : 23;
  const uint32x4_t mask = vdupq_n_u32(0xFFu << kShift);
  const int32x4_t shift = vdupq_n_s32(kShift - 8 * index);
  Scales scales;
#pragma GCC unroll 4
  for (int quad = 0; quad < kQuads; ++quad) {
    const uint32x4_t bytes =
        vreinterpretq_u32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(group) + 16 * quad));
    const float32x4_t rows = vreinterpretq_f32_u32(vandq_u32(vshlq_u32(bytes, shift), mask));
    scales.v[2 * quad] = vzip1q_f32(rows, rows);
    scales.v[2 * quad + 1] = vzip2q_f32(rows, rows);
  }
  return scales;
}

// k 8j..8j+7 of two tokens.
NIBBLE_INLINE int8x16_t TwoTokens(const Int8Block& a, const Int8Block& b, int j) {
  return vcombine_s8(vld1_s8(a.q + 8 * j), vld1_s8(b.q + 8 * j));
}

// The dot of a row pair over 8 k times kCount from step kFirst on.
template <int kFirst, int kCount>
NIBBLE_INLINE float32x4_t Dot(const Codes& codes, int pair, const Int8Block& a,
                              const Int8Block& b) {
  int32x4_t dot = vdupq_n_s32(0);
#pragma GCC unroll 4
  for (int j = kFirst; j < kFirst + kCount; ++j) {
    dot = vmmlaq_s32(dot, codes.w[j][pair], TwoTokens(a, b, j));
  }
  return vcvtq_f32_s32(dot);
}

// Adds the products of 32 k; `second` are the scales of the last 16 where these have their own.
template <CodeFormat F>
NIBBLE_INLINE void AddBlock(const Codes& codes, const Scales& first, const Scales& second,
                            const Int8Block& a, const Int8Block& b, float32x4_t (&acc)[kRowPairs]) {
  constexpr int kLength = 2 * kSteps / CodeLayout<F>::kScalesPerBlock;
  const float32x2_t both = {a.scale, b.scale};
  const float32x4_t activation_scales = vcombine_f32(both, both);
#pragma GCC unroll 8
  for (int pair = 0; pair < kRowPairs; ++pair) {
    float32x4_t product = vmulq_f32(Dot<0, kLength>(codes, pair, a, b), first.v[pair]);
    if constexpr (CodeLayout<F>::kScalesPerBlock == 2) {
      product = vfmaq_f32(product, Dot<kLength, kLength>(codes, pair, a, b), second.v[pair]);
    }
    acc[pair] = vfmaq_f32(acc[pair], product, activation_scales);
  }
}

// T slots of tokens of a panel; a single token is its own neighbour.
template <CodeFormat F, int T>
void RunTile(const PanelJob& job, int64_t panel, int64_t first, int64_t tokens) {
  using Layout = CodeLayout<F>;
  constexpr int64_t kGroupBytes = kScaleBytes + Layout::kBlocks * kCodeBytes;
  const auto* x = reinterpret_cast<const Int8Block*>(job.activations + first * job.token_bytes);
  const std::byte* w = job.weights + panel * job.panel_bytes;
  constexpr int kPairs = (T + 1) / 2;
  float32x4_t acc[kPairs][kRowPairs];
  for (auto& of_two : acc) {
    for (float32x4_t& pair : of_two) pair = vdupq_n_f32(0.0f);
  }
  for (int64_t group = 0; group < job.groups; ++group, w += kGroupBytes) {
    if (first == 0) Prefetch<kGroupBytes>(w);
    for (int block = 0; block < Layout::kBlocks; ++block, x += T) {
      Codes codes;
      DecodeCodes(w + kScaleBytes + block * kCodeBytes, &codes);
      constexpr int kScales = Layout::kScalesPerBlock;
      const Scales scales = ScalesOf<F>(w, block * kScales);
      const Scales second = kScales == 2 ? ScalesOf<F>(w, block * kScales + 1) : scales;
      for (int t = 0; t < kPairs; ++t) {
        const Int8Block& b = x[T == 1 ? 0 : 2 * t + 1];
        AddBlock<F>(codes, scales, second, x[2 * t], b, acc[t]);
      }
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    Row row;
    for (int quad = 0; quad < kQuads; ++quad) {
      const float32x4_t a = acc[t / 2][2 * quad];
      const float32x4_t b = acc[t / 2][2 * quad + 1];
      row.v[quad] = t % 2 == 0 ? vuzp1q_f32(a, b) : vuzp2q_f32(a, b);
    }
    StoreOutput(job, panel, first + t, row);
  }
}

template <CodeFormat F>
void RunPanels(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t first = 0, slots = 0; first < job.m; first += slots) {
      slots = first < job.wide_tokens ? job.tile : job.last_tile;
      const int64_t left = job.m - first;
      const int64_t tokens = left < slots ? left : slots;
      const auto run = slots == 8   ? RunTile<F, 8>
                       : slots == 4 ? RunTile<F, 4>
                       : slots == 2 ? RunTile<F, 2>
                                    : RunTile<F, 1>;
      run(job, panel, first, tokens);
    }
  }
}

template <CodeFormat F>
void RunOneTile(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  const LinearKernels& neon = NeonLinear();
  const PanelKernel& one = F == CodeFormat::kNvfp4 ? neon.nvfp4_int8 : neon.mxfp4_int8;
  (job.m == 1 ? one.run : RunPanels<F>)(job, panel_begin, panel_end);
}

template <CodeFormat F>
constexpr PanelKernel kKernel = {
    .run = RunPanels<F>, .sizes = {1, 2, 4, 8}, .run_one_tile = RunOneTile<F>};

}  // namespace
}  // namespace i8mm

const LinearKernels& I8mmLinear() {
  static const LinearKernels kernels = [] {
    LinearKernels table = NeonLinear();
    table.name = "i8mm";
    table.nvfp4_int8 = i8mm::kKernel<CodeFormat::kNvfp4>;
    table.mxfp4_int8 = i8mm::kKernel<CodeFormat::kMxfp4>;
    return table;
  }();
  return kernels;
}

}  // namespace nibble::kernels::cpu
