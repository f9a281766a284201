// What an instruction set offers to linear: one table of functions, filled by one translation unit.
//
// This header is seen by files compiled for AVX-512 and the like, so it holds plain structs alone:
// no inline function that the linker could pick for an older processor.
//
// Bits: every kernel computes a (row, token) in the order that panel_loops.inc spells out, with one
// rounding per fused multiply-add, so all instruction sets agree bit for bit (AMD's vdpbf16ps, too,
// but for subnormal numbers).
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::kernels::cpu {

// A linear over M prepared tokens. Panels are independent; Run handles a range of them.
struct PanelJob {
  const std::byte* weights = nullptr;  // panel 0
  int64_t panel_bytes = 0;
  int64_t groups = 0;                   // per panel; INT4, INT8: blocks of 32 k
  const float* row_scales = nullptr;    // (panels * 16): output multiplier of a row
  const float* block_scales = nullptr;  // FP8: (panels, scale columns, 16)
  int64_t scale_columns = 0;
  int64_t blocks_per_scale = 0;  // blocks of 32 k that share a scale column
  int64_t header_bytes = 0;      // INT4, INT8: of a scale column

  const std::byte* activations = nullptr;  // tile after tile
  int64_t token_bytes = 0;                 // prepared bytes per token
  int64_t m = 0;
  int64_t tile = 1;         // tokens per tile of the first wide_tokens tokens
  int64_t wide_tokens = 0;  // a multiple of tile
  int64_t last_tile = 1;    // slots per tile of the others

  const float* bias = nullptr;  // (N) or null
  uint16_t* y = nullptr;        // (M, N) BF16, or
  float* y_f32 = nullptr;       // (M, N)
  int64_t y_stride = 0;
  bool add = false;  // to y
  int64_t n = 0;
};

// One token's activations into its places of a tile: block b goes to out + b * block_stride.
struct PrepareJob {
  const uint16_t* x = nullptr;  // (K) BF16
  int64_t k = 0;
  const int32_t* column_order = nullptr;    // (K): x[column_order[i]] stands for x[i]
  const float* input_multiplier = nullptr;  // (K): times this, rounded to BF16
  int64_t blocks = 0;                       // of 32, or kWideK, zero-padded beyond K
  std::byte* out = nullptr;
  int64_t block_stride = 0;
};

// Tokens per pass over the weights, PanelJob::m at most: their prepared activations stay in the
// second-level cache while panels stream by. Weights are read once per pass, which 192 tokens of
// arithmetic hide; more of those that are prepared in a byte each, which decodes weights less
// often.
inline constexpr int64_t kPassTokens = 256;
inline constexpr int64_t kWidePassTokens = 192;

// So many pay for scaling codes in memory, where a kernel of fewer scales their sums.
inline constexpr int64_t kManyTokens = 128;

inline constexpr int kMaxTileSizes = 10;

using PanelRun = void (*)(const PanelJob& job, int64_t panel_begin, int64_t panel_end);

// A kernel exists for some numbers of tokens that share one decoding of the weights: a full set
// would take minutes to compile. Other numbers run the next larger one with idle slots.
struct PanelKernel {
  PanelRun run = nullptr;
  int sizes[kMaxTileSizes] = {};    // ascending, 0 after the last
  PanelRun run_one_tile = nullptr;  // instead of run for a single tile, where that is faster
  int one_tile = 0;                 // so many tokens are one, though no size above
};

// Runs `iterations` of nothing but multiply-adds in registers and returns the operations done
// (a multiplication and an addition are two): the ceiling that kernels are compared with.
using ComputeProbe = int64_t (*)(int64_t iterations);

struct LinearKernels {
  const char* name = "";
  ComputeProbe int8_probe = nullptr;
  ComputeProbe int16_probe = nullptr;
  ComputeProbe bf16_probe = nullptr;
  void (*prepare_int8)(const PrepareJob&) = nullptr;
  void (*prepare_int8_sum)(const PrepareJob&) = nullptr;
  void (*prepare_int16)(const PrepareJob&) = nullptr;
  void (*prepare_digits)(const PrepareJob&) = nullptr;
  void (*prepare_int24)(const PrepareJob&) = nullptr;
  void (*prepare_int24_sum)(const PrepareJob&) = nullptr;
  void (*prepare_wide_int8)(const PrepareJob&) = nullptr;
  void (*prepare_bf16)(const PrepareJob&) = nullptr;
  int64_t bf16_block_bytes = 0;  // what prepare_bf16 makes of 32 activations
  void (*prepare_f32)(const PrepareJob&) = nullptr;
  PanelKernel nvfp4_int8;
  PanelKernel nvfp4_int16;
  // int16 of so few tokens that it is faster, or instead of the other; the same bits.
  PanelKernel nvfp4_digits;
  PanelKernel nvfp4_requantized;  // optional: int8 otherwise
  PanelKernel mxfp4_requantized;
  PanelKernel nvfp4_int24;  // BF16 activations in fixed point, or
  PanelKernel nvfp4_bf16;   // as they are
  PanelKernel mxfp4_int8;
  PanelKernel mxfp4_int16;
  PanelKernel mxfp4_digits;
  PanelKernel mxfp4_int24;
  PanelKernel mxfp4_bf16;
  PanelKernel mxfp4_bf16_many;  // optional: of kManyTokens and more; the same bits
  PanelKernel bf16;
  PanelKernel fp8;
  PanelKernel f16;
  PanelKernel f32;
  PanelKernel int4_int8;
  PanelKernel int4_int24;  // BF16 activations in fixed point, or
  PanelKernel int4_bf16;   // as they are
  PanelKernel int8_int8;
  PanelKernel int8_bf16;
};

const LinearKernels& GenericLinear();
#if defined(__x86_64__)
const LinearKernels& Avx2Linear();
const LinearKernels& Avx512Linear();      // BF16 products as FP32 multiply-adds
const LinearKernels& Avx512Bf16Linear();  // as vdpbf16ps
const LinearKernels& AmxLinear();         // AVX-512 with integer products by tiles
#elif defined(__aarch64__)
const LinearKernels& NeonLinear();
const LinearKernels& I8mmLinear();  // with the 8-bit matrix extension
#endif

}  // namespace nibble::kernels::cpu
