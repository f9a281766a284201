// A GPU's table with linear_w4a4, for tests of what SM 12.x does.
#pragma once

#include "kernels/ops.h"

namespace nibble::kernels {

// As CudaOps; other GPUs than those of SM 12.x emulate linear_w4a4. kUnsupported where the GPU
// cannot, or where there is none.
Result<const OpTable*> CudaOpsWithW4a4();

}  // namespace nibble::kernels
