// 4-bit codes times integer activations on AVX-512 with VNNI and VBMI, many tokens.
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
//
#include "kernels/cpu/linear/batch_avx512.inc"
//
#include "kernels/cpu/linear/batch_kinds_avx512.inc"

}  // namespace
}  // namespace avx512_batch

CodeRuns Avx512BatchRuns() {
  using namespace avx512_batch;
  return {.nvfp4_requantized = kBatch<RequantizedKind<CodeFormat::kNvfp4>>,
          .mxfp4_requantized = kBatch<RequantizedKind<CodeFormat::kMxfp4>>,
          .nvfp4_int24 = kBatch<Int24Kind<CodeFormat::kNvfp4>>,
          .mxfp4_int24 = kBatch<Int24Kind<CodeFormat::kMxfp4>>,
          .nvfp4_int8 = kNarrowBatch<CodeKind<CodeFormat::kNvfp4, Nvfp4Int8>>,
          .nvfp4_int16 = kNarrowBatch<CodeKind<CodeFormat::kNvfp4, Words>>,
          .mxfp4_int8 = kBatch<CodeKind<CodeFormat::kMxfp4, Mxfp4Int8>>,
          .mxfp4_int16 = kNarrowBatch<CodeKind<CodeFormat::kMxfp4, Words>>};
}

}  // namespace nibble::kernels::cpu
