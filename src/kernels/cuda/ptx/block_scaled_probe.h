// The block-scaled FP4 MMA on the GPU that is there: the instruction on SM 12.x, its emulation on
// others. For block_scaled_test.cc.
#pragma once

#include <span>

#include "kernels/cuda/ptx/block_scaled_emulator.h"

namespace nibble::kernels::cuda {

// Each warp's C += A B. Waits.
void ProbeBlockScaledMma(std::span<ptx::WarpRegisters> warps, int selector_a, int selector_b);

}  // namespace nibble::kernels::cuda
