#include "kernels/cuda/linear/decode.cuh"

namespace nibble::kernels::cuda::decode {

const void* Fp8Kernel(int token_tiles, int stages, Input input) {
  return KernelOf<TileFormat::kFp8>(token_tiles, stages, input);
}

}  // namespace nibble::kernels::cuda::decode
