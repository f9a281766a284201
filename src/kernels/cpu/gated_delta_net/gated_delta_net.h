// Gated DeltaNet: the value heads of all sequences are split among the threads.
#pragma once

#include <cstddef>

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

size_t GatedDeltaNetWorkspace(int threads, const GatedDeltaNetParams& sizes);
void GatedDeltaNet(const VectorKernels& kernels, const OpContext& context,
                   const GatedDeltaNetParams& params);

}  // namespace nibble::kernels::cpu
