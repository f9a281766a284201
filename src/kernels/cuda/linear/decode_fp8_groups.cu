#include "kernels/cuda/linear/decode.cuh"

namespace nibble::kernels::cuda::decode {

const void* Fp8GroupsKernel(int token_tiles, int stages, Input input) {
  return KernelOf<TileFormat::kFp8Groups>(token_tiles, stages, input);
}

}  // namespace nibble::kernels::cuda::decode
