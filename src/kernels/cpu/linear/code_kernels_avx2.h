// What linear_codes_avx2.cc hands to linear_avx2.cc, which makes LinearKernels of it.
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

}  // namespace nibble::kernels::cpu
