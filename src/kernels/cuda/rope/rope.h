// Between the projections of an attention and its scores: q/k norm, rotation, the write of keys and
// values into the cache.
//
// Positions and slots are read before the kernels wait for their predecessor: they are written
// before the step's kernels, not by one of them.
#pragma once

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

void RopeAndCache(const OpContext& context, const RopeAndCacheParams& params);
void MlaRopeAndCache(const OpContext& context, const MlaRopeAndCacheParams& params);

}  // namespace nibble::kernels::cuda
