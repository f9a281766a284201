#include "kernels/cuda/attention/tile_launch.cuh"

namespace nibble::kernels::cuda {

void LaunchTilesFp8(const OpContext& context, const AttentionProblem& problem, int64_t tokens,
                    int64_t max_keys) {
  LaunchTiles<KvFormat::kFp8>(context, problem, tokens, max_keys);
}

}  // namespace nibble::kernels::cuda
