// Parts of an op's workspace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/op_params.h"

namespace nibble::kernels {

// Of m rows of BF16, so that what lies behind them is 64-byte aligned, too.
inline size_t Bf16RowsBytes(int64_t m, int64_t width) {
  return (static_cast<size_t>(m * width) * sizeof(uint16_t) + 63) / 64 * 64;
}

// What is left behind the first `bytes`, of which there are as many.
inline OpContext Behind(OpContext context, size_t bytes) {
  context.workspace += bytes;
  context.workspace_bytes -= bytes;
  return context;
}

}  // namespace nibble::kernels
