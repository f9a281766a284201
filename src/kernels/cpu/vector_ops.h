// The ops that are written over simd/ (norm, activation, rope, attention, sampling) or use them
// (linear, which norms its input), by variant.
#pragma once

#include <string_view>

#include "kernels/ops.h"

namespace nibble::kernels::cpu {

// Fills the entries of `table`; false if this build has no such variant. Whether the processor runs
// it is the caller's question.
bool FillVectorOps(std::string_view variant, OpTable* table);

}  // namespace nibble::kernels::cpu
