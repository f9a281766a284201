#include "kernels/cuda/attention/tile_launch.cuh"

namespace nibble::kernels::cuda {

void LaunchTilesBf16(const OpContext& context, const AttentionProblem& problem, int64_t tokens,
                     int64_t max_keys) {
  LaunchTiles<KvFormat::kBf16>(context, problem, tokens, max_keys);
}

}  // namespace nibble::kernels::cuda
