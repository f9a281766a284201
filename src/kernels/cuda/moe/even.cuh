// The even choice of experts of benchmarks (kernels/even_routing.h), by a warp, after the usual
// one.
#pragma once

#include "kernels/even_routing.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda::moe {

// Where routing asks for it, replaces what ChooseExperts gave for a token: experts ascend. weights
// may be null.
__device__ inline void ChooseEvenlyInstead(const Routing& routing, int64_t token, int32_t* chosen,
                                           float* weights) {
  if (routing.even_keys == nullptr) return;
  const int lane = static_cast<int>(threadIdx.x % 32), top_k = routing.top_k;
  const EvenChoice even =
      ChooseEvenly(routing.even_keys[token], routing.even_salt, routing.experts, top_k);
  __syncwarp();
  for (int j = lane; j < top_k; j += 32) {
    const int32_t own = even.expert(j, routing.experts);
    int place = 0;
    for (int i = 0; i < top_k; ++i) place += even.expert(i, routing.experts) < own;
    chosen[place] = own;
    if (weights != nullptr) weights[place] = routing.scale / static_cast<float>(top_k);
  }
  __syncwarp();
}

}  // namespace nibble::kernels::cuda::moe
