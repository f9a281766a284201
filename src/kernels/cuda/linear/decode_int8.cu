#include "kernels/cuda/linear/decode.cuh"

namespace nibble::kernels::cuda::decode {

const void* Int8Kernel(int token_tiles, int stages, Input input) {
  return KernelOf<TileFormat::kInt8>(token_tiles, stages, input);
}

}  // namespace nibble::kernels::cuda::decode
