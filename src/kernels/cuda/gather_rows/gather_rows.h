// Rows of a matrix, chosen by index.
#pragma once

#include "kernels/ops.h"

namespace nibble::kernels::cuda {

void GatherRows(const OpContext& context, const GatherRowsParams& params);

}  // namespace nibble::kernels::cuda
