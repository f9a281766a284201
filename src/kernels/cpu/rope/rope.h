// q/k norm, rotary embedding and the write into the paged cache: tokens are split among the
// threads.
#pragma once

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

void RopeAndCache(const VectorKernels& kernels, const OpContext& context,
                  const RopeAndCacheParams& params);
void MlaRopeAndCache(const VectorKernels& kernels, const OpContext& context,
                     const MlaRopeAndCacheParams& params);

}  // namespace nibble::kernels::cpu
