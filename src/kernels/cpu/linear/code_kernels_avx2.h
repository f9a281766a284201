// What the other files of AVX2 hand to linear_avx2.cc, which makes LinearKernels of it.
#pragma once

#include "kernels/cpu/linear/linear_kernels.h"

namespace nibble::kernels::cpu {

struct CodeKernels {
  PanelKernel nvfp4_int8;
  PanelKernel nvfp4_digits;
  PanelKernel nvfp4_int24;
  PanelKernel mxfp4_int8;
  PanelKernel mxfp4_digits;
  PanelKernel mxfp4_int24;
};

CodeKernels Avx2CodeKernels();

struct FloatKernels {
  PanelKernel bf16;
  PanelKernel fp8;
  PanelKernel int8_bf16;
};

FloatKernels Avx2FloatKernels();

}  // namespace nibble::kernels::cpu
