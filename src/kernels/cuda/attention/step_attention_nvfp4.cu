#include "kernels/cuda/attention/step_launch.cuh"

namespace nibble::kernels::cuda {

void LaunchStepNvfp4(const OpContext& context, const AttentionParams& params,
                     const AttentionProblem& problem) {
  LaunchStep<KvFormat::kNvfp4>(context, params, problem);
}

}  // namespace nibble::kernels::cuda
