#include "kernels/cuda/linear/decode.cuh"

namespace nibble::kernels::cuda::decode {

const void* Bf16Kernel(int token_tiles, int stages, Input input) {
  return KernelOf<TileFormat::kBf16>(token_tiles, stages, input);
}

}  // namespace nibble::kernels::cuda::decode
