// Sampling: rows are split among the threads; a row reads its logits in a few vector passes and
// sorts only the candidates that can matter.
#pragma once

#include <cstddef>

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

size_t SampleWorkspace(int threads, int64_t max_rows, int64_t vocab);
void Sample(const VectorKernels& kernels, const OpContext& context, const SampleParams& params);

}  // namespace nibble::kernels::cpu
