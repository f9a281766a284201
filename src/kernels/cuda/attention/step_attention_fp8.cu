#include "kernels/cuda/attention/step_launch.cuh"

namespace nibble::kernels::cuda {

void LaunchStepFp8(const OpContext& context, const AttentionParams& params,
                   const AttentionProblem& problem) {
  LaunchStep<KvFormat::kFp8>(context, params, problem);
}

}  // namespace nibble::kernels::cuda
