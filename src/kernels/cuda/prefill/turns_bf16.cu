#include "kernels/cuda/prefill/turns.cuh"

namespace nibble::kernels::cuda {

void LaunchBf16Turns(const PrefillParams& params, const TurnPlan& plan, void* stream) {
  LaunchTurnFormat<TileFormat::kBf16>(params, plan, static_cast<cudaStream_t>(stream));
}

}  // namespace nibble::kernels::cuda
