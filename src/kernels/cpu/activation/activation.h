// SwiGLU: rows are split among the threads.
#pragma once

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

void SwiGlu(const VectorKernels& kernels, const OpContext& context, const SwiGluParams& params);

}  // namespace nibble::kernels::cpu
