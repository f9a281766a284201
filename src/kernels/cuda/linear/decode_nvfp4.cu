#include "kernels/cuda/linear/decode.cuh"

namespace nibble::kernels::cuda::decode {

const void* Nvfp4Kernel(int token_tiles, int stages, Input input) {
  return KernelOf<TileFormat::kNvfp4>(token_tiles, stages, input);
}

}  // namespace nibble::kernels::cuda::decode
