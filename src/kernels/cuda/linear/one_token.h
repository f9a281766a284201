// Linear of one token whose weight is so small that a CTA's whole share of it waits in shared
// memory when x comes. The bits are decode.h's.
#pragma once

#include "kernels/cuda/linear/decode.h"

namespace nibble::kernels::cuda {

bool OneTokenTakes(const DecodeArgs& args);

// What OneTokenTakes.
void LaunchOneToken(const DecodeArgs& args, void* stream);

// The same of two weights that meet one normed x, in one launch: `second` has FP32 outputs, the
// format and K of `first`, and no bias.
bool OneTokenTakesBoth(const DecodeArgs& first, const DecodeArgs& second);
void LaunchOneTokenBoth(const DecodeArgs& first, const DecodeArgs& second, void* stream);

}  // namespace nibble::kernels::cuda
