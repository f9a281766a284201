#include "kernels/cuda/prefill/turns.cuh"

namespace nibble::kernels::cuda {

void LaunchNvfp4Turns(const PrefillParams& params, const TurnPlan& plan, void* stream) {
  LaunchTurnFormat<TileFormat::kNvfp4>(params, plan, static_cast<cudaStream_t>(stream));
}

}  // namespace nibble::kernels::cuda
