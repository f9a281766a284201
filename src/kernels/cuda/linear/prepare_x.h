// x before a linear that cannot read it where it lies: column order and multiplier applied, padded
// to whole k-tiles, or brought into the order of the reads.
#pragma once

#include "kernels/cuda/linear/weight.h"

namespace nibble::kernels::cuda {

// out: m dense rows of whole k-tiles, zeros beyond K.
void TransformX(const CudaWeight& weight, const uint16_t* x, int64_t x_stride, int64_t m,
                uint16_t* out, void* stream);

// out: for every k-tile and half h of a lane's 16 columns, (tokens / 8, 32 lanes) vectors of 8
// columns: lane 4 g + q of token tile t holds columns 16 q + 8 h .. of token 8 t + g. Zeros beyond
// K and m; tokens is a multiple of 8.
void PrepareX(const CudaWeight& weight, const uint16_t* x, int64_t x_stride, int m, int tokens,
              uint16_t* out, void* stream);

}  // namespace nibble::kernels::cuda
