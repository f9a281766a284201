// Which experts a token goes to, from its router logits: the rules of Routing in ops.h. Scalar but
// for the softmax; a pure function of the logits, without allocations.
#pragma once

#include <cstdint>

#include "kernels/cpu/vector_kernels.h"
#include "kernels/ops.h"

namespace nibble::kernels::cpu {

// Floats of scratch that Route needs.
int64_t RoutingScratch(const Routing& routing);

// logits (E) → experts (top_k) and weights (top_k), in no particular order.
void Route(const VectorKernels& kernels, const Routing& routing, const float* logits,
           float* scratch, int32_t* experts, float* weights);

// In place of what Route gave for token t, where routing.even_keys is set.
void RouteEvenly(const Routing& routing, int64_t t, int32_t* experts, float* weights);

}  // namespace nibble::kernels::cpu
