// A block per group.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/gather.h"
#include "kernels/cuda/ptx/pdl.cuh"
#include "numerics/bf16.h"

namespace nibble::kernels::cuda::moe {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ const InputTransform& Of(const ExpertTransforms& transforms,
                                                    Input input) {
  return input == Input::kGateUp ? transforms.gate_up
         : input == Input::kUp   ? transforms.up
                                 : transforms.down;
}

__global__ void __launch_bounds__(kThreads) GatherKernel(const __grid_constant__ GatherParams p) {
  ptx::WaitForPredecessor();
  ptx::LaunchSuccessor();
  if (static_cast<int>(blockIdx.x) >= p.lists.counts->groups) return;
  const Group& group = p.lists.groups[blockIdx.x];
  const bool shared = group.id == p.experts;
  InputTransform transform;
  if (shared) {
    transform = Of(p.shared_transforms, p.input);
  } else if (p.transforms != nullptr) {
    transform = Of(p.transforms[group.id], p.input);
  }
  const int k = shared ? p.shared_k : p.k;
  for (int row = group.first_row; row < group.first_row + group.rows; ++row) {
    const int64_t from_row = p.input == Input::kDown ? row : p.lists.row_token[row];
    const uint16_t* const from = p.from + from_row * p.from_stride;
    const bool scaled = p.scale_by_weight && !shared;
    for (int column = threadIdx.x; column < p.stride; column += kThreads) {
      uint16_t value = 0;
      if (column < k) {
        value = from[transform.order == nullptr ? column : transform.order[column]];
        if (scaled) value = Bf16FromFloat(Bf16ToFloat(value) * p.lists.row_weight[row]);
        if (transform.multiplier != nullptr)
          value = Bf16FromFloat(Bf16ToFloat(value) * transform.multiplier[column]);
      }
      p.out[row * p.stride + column] = value;
    }
  }
}

}  // namespace

void Gather(const OpContext& context, const GatherParams& params) {
  LaunchPdl(GatherKernel, static_cast<unsigned>(params.max_groups), kThreads, 0, StreamOf(context),
            params);
}

}  // namespace nibble::kernels::cuda::moe
