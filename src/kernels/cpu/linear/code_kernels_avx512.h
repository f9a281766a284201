// What the other files of AVX-512 hand to linear_avx512.cc, which makes
// LinearKernels of it.
#pragma once

#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {

struct CodeRuns {
  PanelRun nvfp4_requantized = nullptr;
  PanelRun mxfp4_requantized = nullptr;
  PanelRun nvfp4_int24 = nullptr;
  PanelRun mxfp4_int24 = nullptr;
  PanelRun nvfp4_int8 = nullptr;
  PanelRun nvfp4_int16 = nullptr;
  PanelRun nvfp4_digits = nullptr;
  PanelRun mxfp4_int8 = nullptr;
  PanelRun mxfp4_int16 = nullptr;
  PanelRun mxfp4_digits = nullptr;
};

struct FloatRuns {
  PanelRun bf16 = nullptr;
  PanelRun fp8 = nullptr;
  PanelRun int8_bf16 = nullptr;
  PanelRun mxfp4 = nullptr;
};

struct IntRuns {
  PanelRun int4_int8 = nullptr;
  PanelRun int4_int24 = nullptr;
  PanelRun int8_int8 = nullptr;
};

IntRuns Avx512IntStreamRuns();  // of one tile up to 8
IntRuns Avx512IntBatchRuns();   // of tiles up to 7

FloatRuns Avx512FloatStreamRuns();  // of one tile up to 8, without BF16
FloatRuns Avx512FloatBatchRuns();   // of tiles up to 7

FloatRuns Avx512Bf16BatchRuns();  // likewise by vdpbf16ps, MXFP4 instead of FP8

CodeRuns Avx512StreamRuns();  // of one tile: up to 8 tokens, 3 as digits
// By tiles of 16 tokens; one_tile's few tokens stream.
struct TileKernelRuns {
  CodeRuns many;
  CodeRuns one_tile;
};
// AVX-512's table with these runs in it.
LinearKernels WithTiles(const TileKernelRuns& runs);

CodeRuns Avx512BatchRuns();  // of tiles up to 7, without digits; requantized for many alone

}  // namespace nibble::kernels::cpu
