#include "kernels/cuda/attention/step_launch.cuh"

namespace nibble::kernels::cuda {

void LaunchStepBf16(const OpContext& context, const AttentionParams& params,
                    const AttentionProblem& problem) {
  LaunchStep<KvFormat::kBf16>(context, params, problem);
}

}  // namespace nibble::kernels::cuda
