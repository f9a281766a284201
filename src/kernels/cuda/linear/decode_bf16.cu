#include "kernels/cuda/linear/decode.cuh"

namespace nibble::kernels::cuda::decode {

const void* Bf16Kernel(int token_tiles, int stages) {
  return KernelOf<TileFormat::kBf16>(token_tiles, stages);
}

}  // namespace nibble::kernels::cuda::decode
