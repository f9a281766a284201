// Linear of one token whose weight is large: it streams through rings of shared memory, and a warp
// keeps its slice of x in registers over all row tiles of its CTA. The bits are decode.h's.
#pragma once

#include "kernels/cuda/linear/decode.h"

namespace nibble::kernels::cuda {

bool StreamTokenTakes(const DecodeArgs& args);

// CTAs of its launch that fit a multiprocessor together: two, where StreamTokenTakes.
int StreamTokenBlocksPerMultiprocessor(const DecodeArgs& args);

// What StreamTokenTakes.
void LaunchStreamToken(const DecodeArgs& args, void* stream);

// The same of two weights that meet one x, in one launch: `second` has FP32 outputs, the format and
// K of `first`, and no bias.
bool StreamTokenTakesBoth(const DecodeArgs& first, const DecodeArgs& second);
void LaunchStreamTokenBoth(const DecodeArgs& first, const DecodeArgs& second, void* stream);

}  // namespace nibble::kernels::cuda
