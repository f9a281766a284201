#include "kernels/cuda/prefill/turn_pairs.cuh"

namespace nibble::kernels::cuda {

void LaunchNvfp4Turns(const PrefillParams& params, const TurnPlan& plan, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (plan.splits == 2) return LaunchPairFormat<TileFormat::kNvfp4>(params, plan, s);
  LaunchTurnFormat<TileFormat::kNvfp4>(params, plan, s);
}

}  // namespace nibble::kernels::cuda
