// 4-bit codes times integer activations on AVX2.
//
// Four vpmaddubsw of 16 k add up in 16 bits without overflow (|sum| <= 24 * 128 * 2 * 4 = 24576),
// so 16 k of one digit cost one widening vpmaddwd. Sums and their order are those of
// code_loops.inc.
//
// One token: two panels stream by and are decoded in registers. More: a chunk of K of a panel is
// decoded once into the first-level cache, where all tokens of the pass meet it.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear/code_kernels_avx2.h"
#include "kernels/cpu/linear/layout.h"
#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {
namespace avx2_codes {
namespace {

#include "kernels/cpu/linear/rows_avx2.inc"
//
#include "kernels/cpu/linear/panel_output.inc"

// ---- Kinds of activations: how many digits, which sums have a scale of their own

template <CodeFormat F>
struct Int8Kind {
  using Activations = Int8Block;
  static constexpr CodeFormat kFormat = F;
  static constexpr int kDigits = 1;
  static constexpr int kParts = CodeLayout<F>::kScalesPerBlock;
  static constexpr int kScaleBlocks = 0;

  static NIBBLE_INLINE const int8_t* Digit(const Int8Block& x, int) { return x.q; }
  static NIBBLE_INLINE int32_t Start(const Int8Block& x, int part) {
    return kParts == 2 ? x.half_start[part] : x.start;
  }
};

template <CodeFormat F>
struct Int16Kind {
  using Activations = DigitBlock;
  static constexpr CodeFormat kFormat = F;
  static constexpr int kDigits = 2;
  static constexpr int kParts = 2;
  static constexpr int kScaleBlocks = 0;

  static NIBBLE_INLINE const int8_t* Digit(const DigitBlock& x, int digit) {
    return digit == 0 ? x.high : x.low;
  }
  static NIBBLE_INLINE int32_t Start(const DigitBlock& x, int part) { return x.half_start[part]; }
};

template <CodeFormat F>
struct Int24Kind {
  using Activations = Int24Block;
  static constexpr CodeFormat kFormat = F;
  static constexpr int kDigits = 3;
  static constexpr int kParts = CodeLayout<F>::kScalesPerBlock;
  static constexpr int kScaleBlocks = kInt24Blocks;

  static NIBBLE_INLINE const int8_t* Digit(const Int24Block& x, int digit) {
    return x.digits[digit];
  }
  static NIBBLE_INLINE int32_t Start(const Int24Block& x, int part) {
    return kParts == 2 ? x.half_start[part] : x.start;
  }
};

// ---- Decoded codes

// 16 k of 16 rows: [dword of the activations][rows 0..7, 8..15].
struct Codes16 {
  __m256i w[4][2];
};

NIBBLE_INLINE void DecodeCodes16(const std::byte* p, Codes16* out) {
  const __m256i table = OffsetTable();
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i bytes = Load256(p + 64 * v + 32 * half);
      out->w[2 * v][half] = LookUp<false>(bytes, table);
      out->w[2 * v + 1][half] = LookUp<true>(bytes, table);
    }
  }
}

// A part's scale and, of the first, where sums start as kFloatMagic, what takes it back.
struct PartScale {
  Row scale;
  Row magic;
};
template <typename Kind, int kPart>
NIBBLE_INLINE PartScale ScaleOfPart(const ScaleBytes& bytes) {
  constexpr int kLast = CodeLayout<Kind::kFormat>::kScalesPerBlock - 1;
  const Row scale = ScaleRow < Kind::kFormat, kPart<kLast ? kPart : kLast>(bytes);
  if constexpr (Kind::kDigits == 3 || kPart == 1) return {scale, ZeroRow()};
  const __m256 minus = _mm256_set1_ps(-kFloatMagic);
  return {scale, MulRows(scale, {minus, minus})};
}

// ---- Sums

NIBBLE_INLINE IntRow ZeroInts() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
NIBBLE_INLINE IntRow ShiftDigit(IntRow sum) {
  return {_mm256_slli_epi32(sum.a, 8), _mm256_slli_epi32(sum.b, 8)};
}
NIBBLE_INLINE IntRow AddWide(IntRow sum, __m256i a, __m256i b) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(a, ones)),
          _mm256_add_epi32(sum.b, _mm256_madd_epi16(b, ones))};
}

// Adds to T tokens' sums the products of 16 k with one digit, dwords d.. of the activations.
template <typename Kind, int T>
NIBBLE_INLINE void AddDigit(const Codes16& codes, const typename Kind::Activations* x, int d,
                            int digit, IntRow (&sum)[T]) {
  __m256i words[T][2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i w[2] = {codes.w[i][0], codes.w[i][1]};
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const __m256i activations = SplatDword(Kind::Digit(x[t], digit) + 4 * (d + i));
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        words[t][half] = i == 0 ? _mm256_maddubs_epi16(w[half], activations)
                                : AddBytes(words[t][half], w[half], activations);
        // Add one after the other: the compiler would keep all products for a tree of additions.
        asm("" : "+x"(words[t][half]));
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) sum[t] = AddWide(sum[t], words[t][0], words[t][1]);
}

// A part's sum of products, less its start, meets its scale; the products of a block's parts join
// in `product` before they meet the activations' scale.
template <typename Kind>
NIBBLE_INLINE void TakeSum(IntRow sum, const PartScale& scale, const typename Kind::Activations& x,
                           int part, Row& product, Row& acc) {
  const __m256i start = _mm256_set1_epi32(Kind::Start(x, part));
  sum = {_mm256_add_epi32(sum.a, start), _mm256_add_epi32(sum.b, start)};
  if constexpr (Kind::kDigits == 3) {
    acc = FmaRows({_mm256_cvtepi32_ps(sum.a), _mm256_cvtepi32_ps(sum.b)}, scale.scale, acc);
  } else {
    const Row shifted = {_mm256_castsi256_ps(sum.a), _mm256_castsi256_ps(sum.b)};
    if (part == 0) {
      product = FmaRows(shifted, scale.scale, scale.magic);
    } else {
      const __m256 magic = _mm256_set1_ps(kFloatMagic);
      const Row dot = {_mm256_sub_ps(shifted.a, magic), _mm256_sub_ps(shifted.b, magic)};
      product = FmaRows(dot, scale.scale, product);
    }
    if (part == Kind::kParts - 1) acc = FmaSplat(product, x.scale, acc);
  }
}

// Part `part` of 32 k: `codes` points at its Codes16, one or, where all of the 32 k share a scale,
// two.
template <typename Kind, int T>
NIBBLE_INLINE void AddPart(const Codes16* codes, const PartScale& scale,
                           const typename Kind::Activations* x, int part, Row (&product)[T],
                           Row (&acc)[T]) {
  constexpr int kPieces = 2 / Kind::kParts;
  IntRow sum[T];
#pragma GCC unroll 3
  for (int digit = 0; digit < Kind::kDigits; ++digit) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) sum[t] = digit > 0 ? ShiftDigit(sum[t]) : ZeroInts();
#pragma GCC unroll 2
    for (int piece = 0; piece < kPieces; ++piece) {
      AddDigit<Kind, T>(codes[piece], x, 4 * (part * kPieces + piece), digit, sum);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) TakeSum<Kind>(sum[t], scale, x[t], part, product[t], acc[t]);
}

// After block `block`: where blocks share an activation scale, their sum meets it.
template <typename Kind>
NIBBLE_INLINE void TakeScale(int64_t block, const typename Kind::Activations& x, Row& acc,
                             Row& total) {
  if constexpr (Kind::kScaleBlocks > 0) {
    if (block % Kind::kScaleBlocks != Kind::kScaleBlocks - 1) return;
    total = FmaSplat(acc, x.scale, total);
    acc = ZeroRow();
  }
}

// ---- One token

template <typename Kind, int kPart>
NIBBLE_INLINE void StreamPart(const std::byte* codes, const ScaleBytes& scales,
                              const typename Kind::Activations& x, Row& product, Row& acc) {
  constexpr int kPieces = 2 / Kind::kParts;
  IntRow digits[Kind::kDigits][1];
  for (auto& digit : digits) digit[0] = ZeroInts();
#pragma GCC unroll 2
  for (int i = kPart * kPieces; i < (kPart + 1) * kPieces; ++i) {
    Codes16 decoded;
    DecodeCodes16(codes + i * (kCodeBytes / 2), &decoded);
#pragma GCC unroll 3
    for (int digit = 0; digit < Kind::kDigits; ++digit) {
      AddDigit<Kind, 1>(decoded, &x, 4 * i, digit, digits[digit]);
    }
  }
  IntRow sum = digits[0][0];
#pragma GCC unroll 2
  for (int digit = 1; digit < Kind::kDigits; ++digit) {
    const IntRow shifted = ShiftDigit(sum);
    sum = {_mm256_add_epi32(shifted.a, digits[digit][0].a),
           _mm256_add_epi32(shifted.b, digits[digit][0].b)};
  }
  TakeSum<Kind>(sum, ScaleOfPart<Kind, kPart>(scales), x, kPart, product, acc);
}

// `left` bytes of the panel from the group on.
template <typename Kind>
NIBBLE_INLINE void StreamGroup(const PanelJob& job, const std::byte* group, int64_t left,
                               const typename Kind::Activations* x, Row& acc, Row& total) {
  PrefetchStream<kScaleBytes>(group, left, job.panel_bytes);
  ScaleBytes scales = LoadScaleBytes(group);
  for (int block = 0; block < CodeLayout<Kind::kFormat>::kBlocks; ++block, ++x) {
    const std::byte* codes = group + kScaleBytes + block * kCodeBytes;
    PrefetchStream<kCodeBytes>(codes, left - (codes - group), job.panel_bytes);
    Row product;
    StreamPart<Kind, 0>(codes, scales, *x, product, acc);
    if constexpr (Kind::kParts == 2) StreamPart<Kind, 1>(codes, scales, *x, product, acc);
    scales = NextScales<Kind::kFormat>(scales);
    TakeScale<Kind>(block, *x, acc, total);
  }
}

template <typename Kind>
void RunStream(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  using Layout = CodeLayout<Kind::kFormat>;
  constexpr int64_t kGroupBytes = kScaleBytes + Layout::kBlocks * kCodeBytes;
  for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
    const auto* x = reinterpret_cast<const typename Kind::Activations*>(job.activations);
    const std::byte* w = job.weights + panel * job.panel_bytes;
    const int panels = panel + 1 < panel_end ? 2 : 1;
    // A last single panel is its own neighbour.
    const int64_t second = panels == 2 ? job.panel_bytes : 0;
    Row acc[2] = {ZeroRow(), ZeroRow()};
    Row total[2] = {ZeroRow(), ZeroRow()};
    const std::byte* const end = w + job.panel_bytes;
    for (int64_t group = 0; group < job.groups; ++group, w += kGroupBytes, x += Layout::kBlocks) {
      StreamGroup<Kind>(job, w, end - w, x, acc[0], total[0]);
      StreamGroup<Kind>(job, w + second, end - w, x, acc[1], total[1]);
    }
    for (int i = 0; i < panels; ++i) {
      StoreOutput(job, panel + i, 0, Kind::kScaleBlocks > 0 ? total[i] : acc[i]);
    }
  }
}

// ---- Many tokens

struct DecodedBlock {
  Codes16 codes[2];
  PartScale scales[2];
};

constexpr int64_t kChunkBlocks = 16;

template <typename Kind>
NIBBLE_INLINE void DecodeGroup(const std::byte* group, DecodedBlock* out) {
  ScaleBytes scales = LoadScaleBytes(group);
  for (int block = 0; block < CodeLayout<Kind::kFormat>::kBlocks; ++block, ++out) {
    const std::byte* codes = group + kScaleBytes + block * kCodeBytes;
    DecodeCodes16(codes, &out->codes[0]);
    DecodeCodes16(codes + kCodeBytes / 2, &out->codes[1]);
    out->scales[0] = ScaleOfPart<Kind, 0>(scales);
    if constexpr (Kind::kParts == 2) out->scales[1] = ScaleOfPart<Kind, 1>(scales);
    scales = NextScales<Kind::kFormat>(scales);
  }
}

// Adds the products of T tokens and `blocks` blocks to their sums.
template <typename Kind, int T>
void AddChunk(const DecodedBlock* decoded, const typename Kind::Activations* x, int64_t blocks,
              Row* sums) {
  constexpr int kPieces = 2 / Kind::kParts;
  Row acc[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) acc[t] = Kind::kScaleBlocks > 0 ? ZeroRow() : sums[t];
  for (int64_t block = 0; block < blocks; ++block, ++decoded, x += T) {
    Row product[T];
    AddPart<Kind, T>(&decoded->codes[0], decoded->scales[0], x, 0, product, acc);
    if constexpr (Kind::kParts == 2) {
      AddPart<Kind, T>(&decoded->codes[kPieces], decoded->scales[1], x, 1, product, acc);
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) TakeScale<Kind>(block, x[t], acc[t], sums[t]);
  }
  if constexpr (Kind::kScaleBlocks > 0) return;
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) sums[t] = acc[t];
}

template <typename Kind, int... kSizes>
void RunBatch(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  using Layout = CodeLayout<Kind::kFormat>;
  constexpr int64_t kGroupBytes = kScaleBytes + Layout::kBlocks * kCodeBytes;
  constexpr int64_t kChunkBytes = kChunkBlocks / Layout::kBlocks * kGroupBytes;
  DecodedBlock decoded[kChunkBlocks];
  Row sums[kPassTokens];
  const int64_t blocks = job.groups * Layout::kBlocks;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t token = 0; token < job.m; ++token) sums[token] = ZeroRow();
    const std::byte* w = job.weights + panel * job.panel_bytes;
    for (int64_t block = 0; block < blocks; block += kChunkBlocks) {
      const int64_t left = blocks - block;
      const int64_t count = left < kChunkBlocks ? left : kChunkBlocks;
      for (int64_t b = 0; b < count; b += Layout::kBlocks, w += kGroupBytes) {
        PrefetchFar<kGroupBytes>(w + kChunkBytes);
        DecodeGroup<Kind>(w, &decoded[b]);
      }
      for (int64_t token = 0, slots = 0; token < job.m; token += slots) {
        slots = token < job.wide_tokens ? job.tile : job.last_tile;
        const auto* x = reinterpret_cast<const typename Kind::Activations*>(
                            job.activations + token * job.token_bytes) +
                        block * slots;
        static_cast<void>(
            ((slots == kSizes && (AddChunk<Kind, kSizes>(decoded, x, count, sums + token), true)) ||
             ...));
      }
    }
    for (int64_t token = 0; token < job.m; ++token) StoreOutput(job, panel, token, sums[token]);
  }
}

template <typename Kind>
void RunFew(const PanelJob& job, int64_t panel_begin, int64_t panel_end) {
  (job.m == 1 ? RunStream<Kind> : RunBatch<Kind, 1, 2, 3, 4>)(job, panel_begin, panel_end);
}

template <typename Kind>
constexpr PanelKernel kKernel = {
    .run = RunBatch<Kind, 1, 2, 3, 4>, .sizes = {1, 2, 3, 4}, .run_one_tile = RunFew<Kind>};

}  // namespace
}  // namespace avx2_codes

CodeKernels Avx2CodeKernels() {
  using namespace avx2_codes;
  return {.nvfp4_int8 = kKernel<Int8Kind<CodeFormat::kNvfp4>>,
          .nvfp4_digits = kKernel<Int16Kind<CodeFormat::kNvfp4>>,
          .nvfp4_int24 = kKernel<Int24Kind<CodeFormat::kNvfp4>>,
          .mxfp4_int8 = kKernel<Int8Kind<CodeFormat::kMxfp4>>,
          .mxfp4_digits = kKernel<Int16Kind<CodeFormat::kMxfp4>>,
          .mxfp4_int24 = kKernel<Int24Kind<CodeFormat::kMxfp4>>};
}

}  // namespace nibble::kernels::cpu
