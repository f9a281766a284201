// Two linears that meet the same x, as one op.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels {

// One x, x_stride, norm and m; `first` with y, `second` with y_f32. Neither has an activation.
struct LinearPairParams {
  LinearParams first;
  LinearParams second;
};

}  // namespace nibble::kernels
