// Copies rows: on the caller's thread, as a step gathers a few rows only.
#pragma once

#include "kernels/ops.h"

namespace nibble::kernels::cpu {

void GatherRows(const OpContext& context, const GatherRowsParams& params);

}  // namespace nibble::kernels::cpu
