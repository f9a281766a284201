// Rows of a matrix, chosen by index.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

void GatherRows(const OpContext& context, const GatherRowsParams& params);

}  // namespace nibble::kernels::cuda
