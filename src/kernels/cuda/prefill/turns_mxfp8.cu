#include "kernels/cuda/prefill/turns.cuh"

namespace nibble::kernels::cuda {

void LaunchMxfp8Turns(const PrefillParams& params, const TurnPlan& plan, void* stream) {
  LaunchTurnFormat<TileFormat::kMxfp8>(params, plan, static_cast<cudaStream_t>(stream));
}

}  // namespace nibble::kernels::cuda
