#include "kernels/cuda/prefill/turns.cuh"

namespace nibble::kernels::cuda {

void LaunchFp8Turns(const PrefillParams& params, const TurnPlan& plan, void* stream) {
  LaunchTurnFormat<TileFormat::kFp8>(params, plan, static_cast<cudaStream_t>(stream));
}

}  // namespace nibble::kernels::cuda
